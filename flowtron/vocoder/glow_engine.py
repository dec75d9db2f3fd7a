"""Inference of WaveGlow: weights folded and inverted once, layers as matrix products, sound in blocks.

The coupling networks look ahead. Run over a long sound in pieces, they would need a second of overlap on either side,
computed for nothing. Here every layer keeps the few steps that its next ones need and passes on only what is final, so
pieces cost no more than the whole and equal it, and memory does not grow with the sound.

Letters: B batch, T_mel frames, P groups of samples a frame, T = P · T_mel groups, G samples a group, C channels,
M conditioning channels.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from flowtron.vocoder.glow import InvertibleConv
from flowtron.vocoder.layers import Conv
from flowtron.vocoder.waveglow import CouplingNet, WaveGlow


@dataclass
class _Layer:
    """A gated layer: taps to 2C, and a step of context to 2C of each of its groups; outward to the residual, but in the
    last layer, and to this layer's share of the 2c shifts and log-scales."""

    dilation: int
    taps: int
    inward: Tensor
    context: Tensor
    context_bias: Tensor
    outward: Tensor
    outward_bias: Tensor


@dataclass
class _LayerState:
    """Steps kept for what is to come. held: inputs (B, ·, C), of the first layer (B, ·, c + 1). skipped: sums of the
    shares (B, ·, 2c). position: next output's step."""

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
    """What a stream keeps: frames the upsampling still reads, context still needed, its first step's number, and each
    flow's state."""

    frames: Tensor
    context: Tensor
    base: int
    flows: dict[int, _FlowState] = field(default_factory=dict)


def _matrix(layer: Conv) -> Tensor:
    """Matrix (width · n_in, n_out) of a convolution, taps in order."""
    return layer.kernel.detach().permute(2, 1, 0).flatten(0, 1)


def _bias(layer: Conv | torch.nn.Conv1d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()


class _Upsampling(NamedTuple):
    """The upsampling of mels, a frame at a time: windows of its last frames (·, taps · n_mels) times weight plus bias
    are the conditioning (·, P · M) of its P groups."""

    weight: Tensor
    bias: Tensor


class _Flow:
    """One flow with its weights as matrices.

    Two linear layers vanish in others. `start` before the first layer's taps: they read the c channels themselves, and
    a one, for its bias, where there is sound. `end` after the sum of all layers' skips: each layer yields its share.
    """

    def __init__(
        self, network: CouplingNet, matrix: Tensor, flips: bool, dtype: torch.dtype, upsample: _Upsampling | None
    ) -> None:
        """Lay out a flow; with an upsampling, its conditioning is fused with it."""
        wide = torch.promote_types(matrix.dtype, torch.float32)
        self.mixing = torch.linalg.inv(matrix.detach().to(wide)).t().contiguous()
        self.flips = flips
        n, conditioning = network.n_channels, _matrix(network.cond_layer)
        self.start = torch.cat([_matrix(network.start), _bias(network.start)[None]])
        end = network.end.weight.detach()[..., 0].t()
        self.end_bias = _bias(network.end)
        self.n_channels, self.n_shares = n, end.shape[1]
        self.layers = []
        for i, (in_layer, res_skip) in enumerate(zip(network.in_layers, network.res_skip_layers)):
            assert isinstance(in_layer, Conv) and isinstance(res_skip, Conv)
            rows = slice(2 * n * i, 2 * n * (i + 1))
            taps = _matrix(in_layer)
            if i == 0:
                taps = torch.cat([self.start @ tap for tap in taps.split(n)])
            outward, bias = _matrix(res_skip), _bias(res_skip)
            outward = torch.cat([outward[:, :-n], outward[:, -n:] @ end], 1)
            context = conditioning[:, rows].to(dtype).contiguous()
            context_bias = (_bias(in_layer) + _bias(network.cond_layer)[rows]).to(dtype)
            if upsample is not None:
                by_group, size = (-1, context.shape[0]), (upsample.weight.shape[0], -1)
                context_bias = (upsample.bias.view(by_group) @ context + context_bias).flatten()
                context = (upsample.weight.view(by_group) @ context).view(size)
            self.layers.append(
                _Layer(
                    in_layer.dilation,
                    in_layer.kernel.shape[2],
                    taps.to(dtype).contiguous(),
                    context,
                    context_bias,
                    outward.to(dtype).contiguous(),
                    torch.cat([bias[:-n], bias[-n:] @ end]).to(dtype),
                )
            )


class GlowEngine:
    """A WaveGlow made ready for inference, whose streams keep their state in an object of their own."""

    def __init__(self, model: WaveGlow, dtype: torch.dtype | None = None, fused: bool | None = None) -> None:
        """Fold, invert and lay out the weights.

        Args:
            model: WaveGlow whose frames are a whole number of groups.
            dtype: of the matrix products, such as torch.bfloat16; the model's own when None.
            fused: compute the conditioning of every layer from the mel's frames in one product, which saves half of
                its multiply-adds and needs 16 times its weights, 1 GB in bfloat16 at full size; None does so where
                products are in half precision.
        """
        weight = model.upsample.weight.detach()
        self.dtype, self.state_dtype = dtype or weight.dtype, weight.dtype
        self.n_group, self.widths, self.n_mels = model.n_group, model.widths, weight.shape[0]
        self.phases = model.stride // model.n_group
        self.n_taps = -(-weight.shape[2] // model.stride)
        # The transposed convolution, one frame's samples at a time: a product with the last few frames, oldest first.
        padded = torch.nn.functional.pad(weight, (0, self.n_taps * model.stride - weight.shape[2]))
        by_tap = padded.unflatten(2, (self.n_taps, self.phases, self.n_group)).flip(2)
        bias = _bias_of(model).repeat_interleave(self.n_group)
        self.upsample = _Upsampling(
            by_tap.permute(2, 0, 3, 1, 4).flatten(2, 4).flatten(0, 1).to(self.dtype).contiguous(),
            bias.repeat(self.phases).to(self.dtype),
        )
        self.fused = self.dtype.itemsize < 4 if fused is None else fused
        self.groups_a_step = self.phases if self.fused else 1
        flows = []
        for k, (network, mix) in enumerate(zip(model.WN, model.convinv)):
            assert isinstance(network, CouplingNet) and isinstance(mix, InvertibleConv)
            flips = model.alternating_halves and k % 2 == 1
            flows.append(_Flow(network, mix.matrix, flips, self.dtype, self.upsample if self.fused else None))
        self.flows = flows

    def start(self, batch: int) -> _State:
        """Return the state before the first frame."""
        new = self.upsample.weight.new_zeros
        flows = {}
        for k, flow in enumerate(self.flows):
            layers = [
                _LayerState(
                    torch.zeros(
                        batch,
                        x.dilation * (x.taps - 1) // 2,
                        flow.n_channels if i else len(flow.start),
                        dtype=self.state_dtype,
                    ),
                    torch.zeros(batch, 0, flow.n_shares, dtype=self.state_dtype),
                )
                for i, x in enumerate(flow.layers)
            ]
            empty = torch.zeros(batch, 0, self.widths[k], dtype=self.state_dtype)
            n_left = self.widths[k - 1] - self.widths[k] if k else 0
            flows[k] = _FlowState(empty, layers, torch.zeros(batch, 0, n_left, dtype=self.state_dtype))
        frames = new(batch, self.n_taps - 1, self.n_mels)
        return _State(frames, new(batch, 0, self.flows[0].layers[0].context.shape[0]), 0, flows)

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
            context = frames.unfold(1, self.n_taps, 1).transpose(2, 3).flatten(2)
            if not self.fused:
                upsampled = context @ self.upsample.weight + self.upsample.bias
                context = upsampled.unflatten(2, (self.phases, -1)).flatten(1, 2)
            state.context = torch.cat([state.context, context], 1)
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
        position = min(layer.position for flow in state.flows.values() for layer in flow.layers)
        done = position // self.groups_a_step - state.base
        state.context, state.base = state.context[:, done:].clone(), state.base + done
        return x.flatten(1)

    def _couple(self, flow: _Flow, state: _FlowState, stream: _State, x: Tensor, last: bool) -> Tensor:
        """Undo one flow for (B, n, c); return what is final of it."""
        pending = torch.cat([state.pending, x], 1)
        kept = x.chunk(2, 2)[flow.flips]
        h = torch.cat([kept, kept.new_ones(*kept.shape[:2], 1)], 2)
        shares = h.new_zeros(*h.shape[:2], flow.n_shares)
        for layer, memory in zip(flow.layers, state.layers):
            h, shares = self._gate(flow, layer, memory, stream, h, shares, last)
        n = h.shape[1]
        state.pending = pending[:, n:].clone()
        shift, log_scale = (shares + flow.end_bias).chunk(2, 2)
        halves = list(pending[:, :n].chunk(2, 2))
        changing = 1 - flow.flips
        halves[changing] = (halves[changing] - shift) * (-log_scale).exp()
        return torch.cat(halves, 2) @ flow.mixing.to(self.state_dtype)

    def _gate(
        self,
        flow: _Flow,
        layer: _Layer,
        memory: _LayerState,
        stream: _State,
        h: Tensor,
        shares: Tensor,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run one gated layer on inputs (B, n, ·) and the sums of shares below it; return those that are final."""
        reach = layer.dilation * (layer.taps - 1)
        # Beyond either end of the sound the layer sees zeros, not what lower layers would make of zeros.
        parts = [memory.held, h, h.new_zeros(h.shape[0], reach // 2, h.shape[2])] if last else [memory.held, h]
        held = torch.cat(parts, 1)
        n, width = max(0, held.shape[1] - reach), h.shape[2]
        waiting = torch.cat([memory.skipped, shares], 1)
        centre = held[:, reach // 2 : reach // 2 + n]
        if layer is flow.layers[0]:
            centre = centre @ flow.start
        done = waiting[:, :n]
        if n:
            inputs = held.new_empty(h.shape[0], n, layer.inward.shape[0], dtype=self.dtype)
            for tap in range(layer.taps):
                inputs[..., tap * width : (tap + 1) * width] = held[:, tap * layer.dilation :][:, :n]
            conditions = self._conditions(layer, stream, memory.position, n)
            filtered, gate = conditions.addmm_(inputs.flatten(0, 1), layer.inward).chunk(2, 1)
            gated = filtered.tanh().mul_(gate.sigmoid())
            outward = torch.addmm(layer.outward_bias, gated, layer.outward).unflatten(0, (-1, n))
            n_residual = outward.shape[2] - flow.n_shares
            if n_residual:
                centre = centre + outward[..., :n_residual]
            done = done + outward[..., n_residual:]
        memory.position += n
        # Copies: a view would keep all of the block.
        memory.held, memory.skipped = held[:, n:].clone(), waiting[:, n:].clone()
        return centre, done

    def _conditions(self, layer: _Layer, stream: _State, position: int, n: int) -> Tensor:
        """Conditioning (B · n, 2C) of a layer for n groups from `position` on."""
        first, end = position // self.groups_a_step, -(-(position + n) // self.groups_a_step)
        context = stream.context[:, first - stream.base : end - stream.base]
        steps = torch.addmm(layer.context_bias, context.flatten(0, 1), layer.context)
        groups = steps.view(len(context), -1, layer.inward.shape[1])
        skipped = position - first * self.groups_a_step
        return groups[:, skipped : skipped + n].flatten(0, 1)


def _bias_of(model: WaveGlow) -> Tensor:
    assert model.upsample.bias is not None
    return model.upsample.bias.detach()
