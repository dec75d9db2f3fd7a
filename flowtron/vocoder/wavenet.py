"""WaveNet: sound sample by sample, each from all before it and the mel (van den Oord et al. 2016, arXiv 1609.03499).

The output is a mixture of logistics over 16-bit samples (Salimans et al. 2017; Shen et al. 2018, section 2.3) or a
softmax over 256 mu-law classes. Generation keeps each layer's past inputs, so that a sample costs one column of every
layer (Le Paine et al. 2016, arXiv 1611.09482).

Letters: B batch, T_mel frames, T samples, L layers, R residual channels, S skip channels, M mixtures, O outputs.
"""

import ctypes
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowtron.audio import AudioSettings
from flowtron.kernels.build import load_library, pointer
from flowtron.vocoder.base import SEED, in_context
from flowtron.vocoder.layers import Conv

MU = 255
N_CLASSES = 65536  # of the discretised logistics: 16-bit samples
PANEL = 16  # columns of a panel in the kernel
SILENT_CLASS = 127
CHUNK_FRAMES = 32
OVERLAP_FRAMES = 6


def mu_law(wav: Tensor) -> Tensor:
    """Return the mu-law classes (0 to 255) of sound in [-1, 1]."""
    compressed = wav.sign() * torch.log1p(MU * wav.abs()) / math.log1p(MU)
    return ((compressed + 1) / 2 * MU + 0.5).floor().long().clamp(0, MU)


def mu_law_inverse(classes: Tensor) -> Tensor:
    """Return the sound that mu-law classes stand for."""
    compressed = classes.float() * (2 / MU) - 1
    return compressed.sign() * torch.expm1(compressed.abs() * math.log1p(MU)) / MU


def mixture_nll(parameters: Tensor, wav: Tensor, log_scale_min: float) -> Tensor:
    """Negative log-probability in nats of 16-bit samples under a discretised mixture of logistics.

    A sample's probability is its component's CDF half a step above it less that half a step below; the outermost
    samples take the whole tail. Where the difference rounds away, the density times the step stands in.

    Args:
        parameters: (B, 3M, T): logits, means, log-scales.
        wav: (B, T) in [-1, 1].
        log_scale_min: floor of the log-scales.

    Returns:
        (B, T).

    Source: Salimans et al. 2017, arXiv 1701.05517, section 2.1.
    """
    logits, means, log_scales = parameters.chunk(3, 1)
    log_scales = log_scales.clamp(min=log_scale_min)
    centred, inverse = wav[:, None] - means, (-log_scales).exp()
    half = 1 / (N_CLASSES - 1)
    above, below = inverse * (centred + half), inverse * (centred - half)
    difference = above.sigmoid() - below.sigmoid()
    middle = inverse * centred
    density = middle - log_scales - 2 * nn.functional.softplus(middle) - math.log((N_CLASSES - 1) / 2)
    inner = torch.where(difference > 1e-5, difference.clamp(min=1e-12).log(), density)
    first, last = above - nn.functional.softplus(above), -nn.functional.softplus(below)
    x = wav[:, None]
    log_probability = torch.where(x < -0.999, first, torch.where(x > 0.999, last, inner))
    return -(logits.log_softmax(1) + log_probability).logsumexp(1)


class Upsampling(nn.Module):
    """Mel to the rate of samples: a convolution over five frames, then repetition and smoothing, factor by factor."""

    def __init__(self, n_mels: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = list(factors)
        self.frames = nn.Conv1d(n_mels, n_mels, 5, padding=2, bias=False)
        # One filter for all channels; a mean at first.
        self.smoothing = nn.ModuleList(nn.Conv1d(1, 1, 2 * f + 1, padding=f, bias=False) for f in factors)
        for conv in self.smoothing:
            assert isinstance(conv, nn.Conv1d)
            nn.init.constant_(conv.weight, 1 / conv.weight.shape[2])

    def forward(self, mel: Tensor) -> Tensor:
        """Map (B, n_mels, T_mel) to (B, n_mels, T_mel · hop_length)."""
        x = self.frames(mel)
        for factor, conv in zip(self.factors, self.smoothing):
            x = conv(x.repeat_interleave(factor, 2).flatten(0, 1)[:, None])[:, 0].unflatten(0, mel.shape[:2])
        return x

    @property
    def context_frames(self) -> int:
        """Frames on either side that a sample depends on."""
        reach, rate = 0.0, 1
        for factor in self.factors:
            rate *= factor
            reach += factor / rate
        return 2 + math.ceil(reach)


class Layer(nn.Module):
    """Causal dilated convolution, gated, conditioned; residual and skip."""

    def __init__(self, n_residual: int, n_skip: int, n_mels: int, width: int, dilation: int, weight_norm: bool) -> None:
        super().__init__()
        self.reach = (width - 1) * dilation
        self.conv = Conv(n_residual, 2 * n_residual, width, dilation=dilation, padding=0, weight_norm=weight_norm)
        self.condition = Conv(n_mels, 2 * n_residual, weight_norm=weight_norm)
        self.outward = Conv(n_residual, n_residual + n_skip, weight_norm=weight_norm)
        self.n_residual = n_residual

    def forward(self, x: Tensor, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, R, T) with (B, n_mels, T) to (B, R, T) and the skip (B, S, T)."""
        y = self.conv(nn.functional.pad(x, (self.reach, 0))) + self.condition(conditioning)
        filtered, gate = y.chunk(2, 1)
        out = self.outward(filtered.tanh() * gate.sigmoid())
        return (x + out[:, : self.n_residual]) * math.sqrt(0.5), out[:, self.n_residual :]


class WaveNet(nn.Module):
    """The stack of layers with its conditioning and output."""

    def __init__(
        self,
        n_mel_channels: int = 80,
        n_layers: int = 24,
        n_stacks: int = 4,
        n_residual: int = 128,
        n_skip: int = 128,
        kernel_size: int = 3,
        n_mixtures: int = 10,
        log_scale_min: float = -16.0,
        upsample_factors: Sequence[int] = (4, 4, 4, 4),
        weight_norm: bool = True,
    ) -> None:
        """Make the network.

        Args:
            n_mel_channels: channels of the mel.
            n_layers: layers in all.
            n_stacks: times that the dilation starts again from 1; it doubles from layer to layer.
            n_residual: channels between layers, a multiple of 8.
            n_skip: channels of the skips.
            kernel_size: taps of a layer.
            n_mixtures: logistics of the output; 0 makes it a softmax over mu-law classes.
            log_scale_min: floor of their log-scales.
            upsample_factors: their product is the hop of the mels.
            weight_norm: whether weights are stored with weight norm.
        """
        super().__init__()
        self.n_mixtures, self.log_scale_min, self.n_skip = n_mixtures, log_scale_min, n_skip
        self.n_residual, self.kernel_size = n_residual, kernel_size
        self.is_mu_law = n_mixtures == 0
        self.n_outputs = MU + 1 if self.is_mu_law else 3 * n_mixtures
        self.dilations = [2 ** (i % (n_layers // n_stacks)) for i in range(n_layers)]
        self.upsampling = Upsampling(n_mel_channels, upsample_factors)
        self.first = Conv(MU + 1 if self.is_mu_law else 1, n_residual, weight_norm=weight_norm)
        self.layers = nn.ModuleList(
            Layer(n_residual, n_skip, n_mel_channels, kernel_size, d, weight_norm) for d in self.dilations
        )
        self.hidden = Conv(n_skip, n_skip, weight_norm=weight_norm)
        self.output = Conv(n_skip, self.n_outputs, weight_norm=weight_norm)

    @property
    def receptive_field(self) -> int:
        """Samples that a prediction depends on."""
        return (self.kernel_size - 1) * sum(self.dilations) + 1

    def encode(self, wav: Tensor) -> Tensor:
        """Return sound (B, T) as the network takes it: itself, or its mu-law classes, as floats."""
        return mu_law(wav).to(wav.dtype) if self.is_mu_law else wav

    def decode(self, samples: Tensor) -> Tensor:
        """Undo `encode`."""
        return mu_law_inverse(samples) if self.is_mu_law else samples

    @property
    def silence(self) -> float:
        """What stands before the first sample."""
        return float(SILENT_CLASS) if self.is_mu_law else 0.0

    def predict(self, samples: Tensor, conditioning: Tensor) -> Tensor:
        """Predict every sample from those before it.

        Args:
            samples: (B, T), encoded.
            conditioning: (B, n_mels, T), upsampled.

        Returns:
            Parameters of each sample's distribution (B, O, T).
        """
        before = torch.cat([torch.full_like(samples[:, :1], self.silence), samples[:, :-1]], 1)
        if self.is_mu_law:
            inputs = nn.functional.one_hot(before.long(), MU + 1).transpose(1, 2).to(conditioning.dtype)
        else:
            inputs = before[:, None]
        x = self.first(inputs)
        skipped = torch.zeros_like(x[:, :1])
        for layer in self.layers:
            x, skip = layer(x, conditioning)
            skipped = skipped + skip
        hidden = self.hidden((skipped / math.sqrt(len(self.layers))).relu())
        return self.output(hidden.relu())

    def forward(self, wav: Tensor, mel: Tensor) -> Tensor:
        """Return the parameters (B, O, T) for sound (B, T) with its mel (B, n_mels, T_mel), T ≤ T_mel · hop."""
        return self.predict(self.encode(wav), self.upsampling(mel)[..., : wav.shape[1]])

    def loss(self, wav: Tensor, mel: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats per sample."""
        parameters = self(wav, mel)
        if self.is_mu_law:
            return nn.functional.cross_entropy(parameters, mu_law(wav))
        return mixture_nll(parameters, wav, self.log_scale_min).mean()


def draw(net: WaveNet, parameters: Tensor, uniforms: Tensor) -> Tensor:
    """Draw samples (B,) from parameters (B, O): a component or class by one uniform number, the value by another."""
    n = net.n_outputs if net.is_mu_law else net.n_mixtures
    cumulative = parameters[:, :n].double().softmax(1).cumsum(1)
    pick = (cumulative <= uniforms[:, :1]).sum(1, keepdim=True).clamp(max=n - 1)
    if net.is_mu_law:
        return pick[:, 0].to(parameters.dtype)
    mean, log_scale = (parameters[:, k * n : (k + 1) * n].gather(1, pick)[:, 0] for k in (1, 2))
    u = uniforms[:, 1].clamp(1e-5, 1 - 1e-5)
    return (mean + log_scale.clamp(min=net.log_scale_min).exp() * (u.log() - (1 - u).log())).clamp(-1, 1)


@dataclass
class Generated:
    """samples: (B, T), encoded. parameters: (B, T, O) of their distributions."""

    samples: Tensor
    parameters: Tensor


class _KernelLayer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("inward", "outward", "outward_bias", "ring")),
        ("dilation", ctypes.c_int64),
    )


class _KernelNet(ctypes.Structure):
    """The same fields in the same order as `Net` in wavenet.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("L", "R", "S", "O", "taps", "classes", "mixtures")),
        ("log_scale_min", ctypes.c_double),
        ("layers", ctypes.c_void_p),
        *(
            (name, ctypes.c_void_p)
            for name in ("first", "first_bias", "hidden", "hidden_bias", "output", "output_bias")
        ),
    )


def _panels(matrix: Tensor) -> Tensor:
    """Pack (inputs, outputs) as (panels, inputs, PANEL)."""
    padded = nn.functional.pad(matrix, (0, -matrix.shape[1] % PANEL))
    return padded.unflatten(1, (-1, PANEL)).transpose(0, 1).contiguous()


def _padded(bias: Tensor) -> Tensor:
    return nn.functional.pad(bias, (0, -len(bias) % PANEL)).contiguous()


def _matrix(conv: Conv) -> Tensor:
    """Matrix (width · n_in, n_out) of a convolution, taps in order."""
    return conv.kernel.detach().permute(2, 1, 0).flatten(0, 1)


class Generator:
    """Sample-by-sample generation with cached layers, in the compiled kernel or, without one, in torch.

    One call continues where the last one stopped.
    """

    def __init__(self, net: WaveNet, batch: int, compiled: bool = True) -> None:
        """Start `batch` silent streams; `compiled` allows the kernel, which computes in float32."""
        self.net, self.batch, self.position = net, batch, 0
        self._layers = [layer for layer in net.layers if isinstance(layer, Layer)]
        weight = net.hidden.kernel
        single = weight.dtype == torch.float32 and weight.device.type == "cpu" and net.n_residual % 8 == 0
        self._library = load_library("wavenet") if compiled and single else None
        self._previous = torch.full((batch,), net.silence, dtype=weight.dtype)
        reaches = [(net.kernel_size - 1) * d for d in net.dilations]
        self._rings = [torch.zeros(batch, reach, net.n_residual, dtype=weight.dtype) for reach in reaches]
        self._inward = [_matrix(layer.conv) for layer in self._layers]
        self._outward = [_matrix(layer.outward) for layer in self._layers]
        # Conditioning of all layers in one product, the layers' own biases added.
        conditions = [_matrix(layer.condition) for layer in self._layers]
        biases = [layer.condition.bias.detach() + layer.conv.bias.detach() for layer in self._layers]
        pad = -2 * net.n_residual % PANEL
        self._condition = nn.functional.pad(torch.stack(conditions, 1), (0, pad)).flatten(1)
        self._condition_bias = nn.functional.pad(torch.stack(biases), (0, pad)).flatten()
        if self._library is not None:
            self._prepare_kernel()

    def _prepare_kernel(self) -> None:
        net = self.net
        self._packed = [
            (_panels(inward), _panels(outward), _padded(layer.outward.bias.detach()))
            for inward, outward, layer in zip(self._inward, self._outward, self._layers)
        ]
        layers = (_KernelLayer * len(self._layers))(
            *(
                _KernelLayer(*(pointer(x) for x in packed), pointer(ring), dilation)
                for packed, ring, dilation in zip(self._packed, self._rings, net.dilations)
            )
        )
        self._ends = (
            _matrix(net.first).contiguous(),
            net.first.bias.detach().contiguous(),
            _panels(_matrix(net.hidden)),
            _padded(net.hidden.bias.detach()),
            _panels(_matrix(net.output)),
            _padded(net.output.bias.detach()),
        )
        self._kernel_layers = layers
        self._kernel_net = _KernelNet(
            len(net.layers),
            net.n_residual,
            net.n_skip,
            net.n_outputs,
            net.kernel_size,
            MU + 1 if net.is_mu_law else 0,
            net.n_mixtures,
            net.log_scale_min,
            ctypes.addressof(layers),
            *(pointer(x) for x in self._ends),
        )

    def __call__(self, conditioning: Tensor, uniforms: Tensor | None = None, given: Tensor | None = None) -> Generated:
        """Generate, or follow what is given.

        Args:
            conditioning: (B, n_mels, T), upsampled.
            uniforms: (B, T, 2) from [0, 1), to draw with.
            given: (B, T) encoded samples for teacher forcing, instead.
        """
        B, _, T = conditioning.shape
        conditions = conditioning.transpose(1, 2) @ self._condition + self._condition_bias
        samples = conditioning.new_empty(B, T)
        parameters = conditioning.new_empty(B, T, self.net.n_outputs)
        if self._library is None:
            self._run_torch(conditions, uniforms, given, samples, parameters)
        else:
            conditions = conditions.contiguous()
            held = [None if x is None else x.float().contiguous() for x in (given, uniforms)]
            self._library.wavenet_run(
                ctypes.byref(self._kernel_net),
                pointer(self._previous),
                *(pointer(x) for x in (*held, conditions, samples, parameters)),
                *(ctypes.c_int64(x) for x in (self.position, B, T)),
                ctypes.c_int(torch.get_num_threads()),
            )
        self.position += T
        return Generated(samples, parameters)

    def _run_torch(
        self, conditions: Tensor, uniforms: Tensor | None, given: Tensor | None, samples: Tensor, parameters: Tensor
    ) -> None:
        net, n_taps = self.net, self.net.kernel_size
        conditions = conditions.unflatten(2, (len(net.layers), -1))[..., : 2 * net.n_residual]
        first = _matrix(net.first)
        for t in range(conditions.shape[1]):
            x = self._previous
            h = (first[x.long()] if net.is_mu_law else x[:, None] * first) + net.first.bias
            skipped = torch.zeros(self.batch, net.n_skip, dtype=h.dtype)
            for i, (ring, dilation) in enumerate(zip(self._rings, net.dilations)):
                now, length = self.position + t, ring.shape[1]
                taps = [ring[:, (now + k * dilation) % length] for k in range(n_taps - 1)]
                y = torch.cat([*taps, h], 1) @ self._inward[i] + conditions[:, t, i]
                if length:
                    ring[:, now % length] = h
                filtered, gate = y.chunk(2, 1)
                out = (filtered.tanh() * gate.sigmoid()) @ self._outward[i] + self._layers[i].outward.bias
                h = (h + out[:, : net.n_residual]) * math.sqrt(0.5)
                skipped = skipped + out[:, net.n_residual :]
            hidden = net.hidden((skipped / math.sqrt(len(net.layers))).relu()[..., None])
            parameters[:, t] = net.output(hidden.relu())[..., 0]
            if given is not None:
                self._previous = given[:, t]
            else:
                assert uniforms is not None
                self._previous = draw(net, parameters[:, t], uniforms[:, t])
            samples[:, t] = self._previous


class WaveNetVocoder:
    """WaveNet behind the one interface.

    A whole sound is cut into overlapping chunks that are generated side by side, so that each weight is read once for
    all; a stream is generated in one go, without seams.
    """

    def __init__(self, model: WaveNet, settings: AudioSettings, chunk_frames: int = CHUNK_FRAMES) -> None:
        """Take a model, weight norm folded, the settings of its mels, and the length of chunks; 0 takes no chunks."""
        self.model, self.settings, self.chunk_frames = model.eval(), settings, chunk_frames

    def __call__(self, mel: Tensor) -> Tensor:
        """Turn log-mels (B, n_mels, T_mel) into wav (B, T_mel · hop_length)."""
        hop, n_frames, chunk = self.settings.hop_length, mel.shape[2], self.chunk_frames or mel.shape[2]
        overlap = OVERLAP_FRAMES if self.chunk_frames else 0
        with torch.inference_mode():
            conditioning = self.model.upsampling(mel)
            starts = range(0, n_frames, chunk)
            # Every chunk is led in by the end of the one before it; the first and the last are filled up with silence.
            missing = starts[-1] + chunk - n_frames
            edges = [conditioning[..., :1].expand(-1, -1, overlap * hop), conditioning]
            padded = torch.cat([*edges, conditioning[..., -1:].expand(-1, -1, missing * hop)], 2)
            chunks = torch.cat([padded[..., s * hop : (s + overlap + chunk) * hop] for s in starts])
            generator = torch.Generator().manual_seed(SEED)
            uniforms = torch.rand(len(starts), 1, chunks.shape[2], 2, generator=generator)
            uniforms = uniforms.expand(-1, mel.shape[0], -1, -1).flatten(0, 1)
            step = self._step()
            run = Generator(self.model, len(chunks))
            pieces = [
                run(chunks[..., at : at + step], uniforms[:, at : at + step]).samples
                for at in range(0, chunks.shape[2], step)
            ]
            wavs = self.model.decode(torch.cat(pieces, 1)).unflatten(0, (len(starts), mel.shape[0]))
            return self._join(wavs, overlap * hop)[:, : n_frames * hop]

    def _step(self) -> int:
        """Samples whose conditioning is computed at once, to bound memory."""
        return self.settings.hop_length

    def _join(self, wavs: Tensor, overlap: int) -> Tensor:
        """Join chunks (n, B, overlap + T) where the later half of an overlap fades from one to the next."""
        if not overlap:
            return torch.cat(list(wavs), 1)
        fade = overlap // 2
        up = torch.linspace(0, 1, fade)
        body = wavs[:, :, overlap:].clone()
        body[:-1, :, -fade:] = body[:-1, :, -fade:] * (1 - up) + wavs[1:, :, overlap - fade : overlap] * up
        return torch.cat(list(body), 1)

    def stream(self, mels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn consecutive mels (n_mels, T_mel) into consecutive wavs."""
        generator, step = torch.Generator().manual_seed(SEED), self._step()
        run = Generator(self.model, 1)

        def upsample(mel: Tensor) -> tuple[Tensor, ...]:
            return (self.model.upsampling(mel[None])[0],)

        with torch.inference_mode():
            for (conditioning,) in in_context(((mel,) for mel in mels), self.model.upsampling.context_frames, upsample):
                pieces = []
                for part in conditioning.split(step, 1):
                    uniforms = torch.rand(part.shape[1], 2, generator=generator)[None]
                    pieces.append(run(part[None], uniforms).samples[0])
                yield self.model.decode(torch.cat(pieces))
