"""Inference of WaveGlow: weights folded and inverted once, layers as matrix products, sound in blocks.

The coupling networks look ahead. Run over a long sound in pieces, they would need a second of overlap on either side,
computed for nothing. Here every layer keeps the few steps that its next ones need and passes on only what is final, so
pieces cost no more than the whole and equal it, and memory does not grow with the sound.

Letters: B batch, T_mel frames, P groups of samples a frame, T = P · T_mel groups, G samples a group, C channels,
M conditioning channels.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowtron.vocoder.glow import InvertibleConv
from flowtron.vocoder.layers import Conv
from flowtron.vocoder.waveglow import CouplingNet, WaveGlow


@dataclass
class _Layer:
    """A gated layer: taps and conditioning to 2C in one matrix; residual (none in the last layer) and skip."""

    dilation: int
    taps: int
    inward: Tensor
    inward_bias: Tensor
    residual: tuple[Tensor, Tensor] | None
    skip: tuple[Tensor, Tensor]


@dataclass
class _LayerState:
    """Steps kept for what is to come. held: inputs (B, ·, C). skipped: sums (B, ·, C). position: next output's step."""

    held: Tensor
    skipped: Tensor
    position: int = 0


@dataclass
class _FlowState:
    """What a flow keeps. pending: channels (B, ·, c) whose coupling is not known yet. early: noise to join later."""

    pending: Tensor
    layers: list[_LayerState]
    early: Tensor


@dataclass
class _State:
    """What a stream keeps: frames the upsampling still reads, conditioning still needed, and each flow's state."""

    frames: Tensor
    conditioning: Tensor
    base: int
    flows: dict[int, _FlowState] = field(default_factory=dict)


def _matrix(layer: Conv) -> Tensor:
    """Matrix (width · n_in, n_out) of a convolution, taps in order."""
    return layer.kernel.detach().permute(2, 1, 0).flatten(0, 1)


def _bias(layer: Conv | torch.nn.Conv1d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()


class _Flow:
    """One flow with its weights as matrices."""

    def __init__(self, network: CouplingNet, matrix: Tensor, flips: bool, dtype: torch.dtype) -> None:
        wide = torch.promote_types(matrix.dtype, torch.float32)
        self.mixing = torch.linalg.inv(matrix.detach().to(wide)).t().contiguous()
        self.flips = flips
        self.start = _matrix(network.start), _bias(network.start)
        self.end = network.end.weight.detach()[..., 0].t().to(dtype).contiguous(), _bias(network.end).to(dtype)
        n, conditioning = network.n_channels, _matrix(network.cond_layer)
        self.n_channels = n
        self.layers = []
        for i, (in_layer, res_skip) in enumerate(zip(network.in_layers, network.res_skip_layers)):
            assert isinstance(in_layer, Conv) and isinstance(res_skip, Conv)
            rows = slice(2 * n * i, 2 * n * (i + 1))
            inward = torch.cat([_matrix(in_layer), conditioning[:, rows]]).to(dtype).contiguous()
            outward, bias = _matrix(res_skip).to(dtype), _bias(res_skip).to(dtype)
            residual = (outward[:, :n].contiguous(), bias[:n]) if outward.shape[1] > n else None
            self.layers.append(
                _Layer(
                    in_layer.dilation,
                    in_layer.kernel.shape[2],
                    inward,
                    (_bias(in_layer) + _bias(network.cond_layer)[rows]).to(dtype),
                    residual,
                    (outward[:, -n:].contiguous(), bias[-n:]),
                )
            )


class GlowEngine:
    """A WaveGlow made ready for inference, whose streams keep their state in an object of their own."""

    def __init__(self, model: WaveGlow, dtype: torch.dtype | None = None) -> None:
        """Fold, invert and lay out the weights.

        Args:
            model: WaveGlow whose frames are a whole number of groups.
            dtype: of the matrix products, such as torch.bfloat16; the model's own when None.
        """
        weight = model.upsample.weight.detach()
        self.dtype, self.state_dtype = dtype or weight.dtype, weight.dtype
        self.n_group, self.widths, self.n_mels = model.n_group, model.widths, weight.shape[0]
        self.phases = model.stride // model.n_group
        self.n_taps = -(-weight.shape[2] // model.stride)
        # The transposed convolution, one frame's samples at a time: a product with the last few frames, oldest first.
        padded = torch.nn.functional.pad(weight, (0, self.n_taps * model.stride - weight.shape[2]))
        by_tap = padded.unflatten(2, (self.n_taps, self.phases, self.n_group)).flip(2)
        self.upsample = by_tap.permute(2, 0, 3, 1, 4).flatten(2, 4).flatten(0, 1).to(self.dtype).contiguous()
        bias = _bias_of(model).repeat_interleave(self.n_group)
        self.upsample_bias = bias.repeat(self.phases).to(self.dtype)
        flows = []
        for k, (network, mix) in enumerate(zip(model.WN, model.convinv)):
            assert isinstance(network, CouplingNet) and isinstance(mix, InvertibleConv)
            flows.append(_Flow(network, mix.matrix, model.alternating_halves and k % 2 == 1, self.dtype))
        self.flows = flows

    def start(self, batch: int) -> _State:
        """Return the state before the first frame."""
        new = self.upsample.new_zeros
        flows = {}
        for k, flow in enumerate(self.flows):
            layers = [
                _LayerState(
                    torch.zeros(batch, x.dilation * (x.taps - 1) // 2, flow.n_channels, dtype=self.state_dtype),
                    torch.zeros(batch, 0, flow.n_channels, dtype=self.state_dtype),
                )
                for x in flow.layers
            ]
            empty = torch.zeros(batch, 0, self.widths[k], dtype=self.state_dtype)
            n_left = self.widths[k - 1] - self.widths[k] if k else 0
            flows[k] = _FlowState(empty, layers, torch.zeros(batch, 0, n_left, dtype=self.state_dtype))
        frames = new(batch, self.n_taps - 1, self.n_mels)
        return _State(frames, new(batch, 0, self.n_mels * self.n_group), 0, flows)

    def push(self, state: _State, mel: Tensor, z: Tensor, last: bool) -> Tensor:
        """Take frames with their noise; return the sound that is now final.

        Args:
            state: of the stream; it is changed.
            mel: (B, n_mels, n), any n.
            z: (B, P · n, G), the noise, already scaled, channels in the order of `WaveGlow.forward`.
            last: whether no frames follow.

        Returns:
            (B, samples), in all G · T once the last frames are in.
        """
        frames = torch.cat([state.frames, mel.transpose(1, 2).to(self.dtype)], 1)
        if n := mel.shape[2]:
            windows = frames.unfold(1, self.n_taps, 1).transpose(2, 3).flatten(2)
            upsampled = windows @ self.upsample + self.upsample_bias
            upsampled = upsampled.unflatten(2, (self.phases, -1)).flatten(1, 2)
            state.conditioning = torch.cat([state.conditioning, upsampled], 1)
        state.frames = frames[:, n:]
        n_left = z.shape[2] - self.widths[-1]
        x = z[..., n_left:]
        for k in reversed(range(len(self.flows))):
            flow = state.flows[k]
            x = self._couple(self.flows[k], flow, state, x, last)
            if joining := flow.early.shape[2]:
                early = torch.cat([flow.early, z[..., n_left - joining : n_left]], 1)
                n_left -= joining
                flow.early = early[:, x.shape[1] :]
                x = torch.cat([early[:, : x.shape[1]], x], 2)
        done = min(layer.position for flow in state.flows.values() for layer in flow.layers) - state.base
        state.conditioning, state.base = state.conditioning[:, done:], state.base + done
        return x.flatten(1)

    def _couple(self, flow: _Flow, state: _FlowState, stream: _State, x: Tensor, last: bool) -> Tensor:
        """Undo one flow for (B, n, c); return what is final of it."""
        pending = torch.cat([state.pending, x], 1)
        kept = x.chunk(2, 2)[flow.flips]
        h = kept @ flow.start[0] + flow.start[1]
        skipped = torch.zeros_like(h)
        for layer, memory in zip(flow.layers, state.layers):
            h, skipped = self._gate(layer, memory, stream, h, skipped, last)
        n = h.shape[1]
        state.pending = pending[:, n:]
        shift, log_scale = (skipped.to(self.dtype) @ flow.end[0] + flow.end[1]).to(self.state_dtype).chunk(2, 2)
        halves = list(pending[:, :n].chunk(2, 2))
        changing = 1 - flow.flips
        halves[changing] = (halves[changing] - shift) * (-log_scale).exp()
        return torch.cat(halves, 2) @ flow.mixing.to(self.state_dtype)

    def _gate(
        self, layer: _Layer, memory: _LayerState, stream: _State, h: Tensor, skipped: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Run one gated layer on inputs (B, n, C) and their sums of skips; return those that are final."""
        reach = layer.dilation * (layer.taps - 1)
        # Beyond either end of the sound the layer sees zeros, not what lower layers would make of zeros.
        parts = [memory.held, h, h.new_zeros(h.shape[0], reach // 2, h.shape[2])] if last else [memory.held, h]
        held = torch.cat(parts, 1)
        n, width = max(0, held.shape[1] - reach), h.shape[2]
        first = memory.position - stream.base
        conditioning = stream.conditioning[:, first : first + n]
        inputs = torch.empty(
            h.shape[0], n, layer.taps * width + conditioning.shape[2], dtype=self.dtype, device=h.device
        )
        for tap in range(layer.taps):
            inputs[..., tap * width : (tap + 1) * width] = held[:, tap * layer.dilation :][:, :n]
        inputs[..., layer.taps * width :] = conditioning
        filtered, gate = torch.addmm(layer.inward_bias, inputs.flatten(0, 1), layer.inward).chunk(2, 1)
        gated = filtered.tanh().mul_(gate.sigmoid())
        waiting = torch.cat([memory.skipped, skipped], 1)
        skip = torch.addmm(layer.skip[1], gated, layer.skip[0]).unflatten(0, (-1, n)) if n else waiting[:, :0]
        centre = held[:, reach // 2 : reach // 2 + n]
        if layer.residual is not None and n:
            centre = centre + torch.addmm(layer.residual[1], gated, layer.residual[0]).unflatten(0, (-1, n))
        memory.position += n
        memory.held, memory.skipped = held[:, n:], waiting[:, n:]
        return centre, waiting[:, :n] + skip


def _bias_of(model: WaveGlow) -> Tensor:
    assert model.upsample.bias is not None
    return model.upsample.bias.detach()
