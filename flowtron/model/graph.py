"""One frame of a step of flow over tensors that stay where they are, so that a CUDA graph can replay it.

Free running launches some forty small kernels a frame, whose launches take longer than the kernels. A captured graph
is one launch. Letters: B batch, D mel channels, T_text tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowtron.model.flow import Conditioner, Conditioning, Context, State

WARM_UP_FRAMES = 3


class StaticStep:
    """Computes frame after frame of `AffineFlow.inverse`, without gradients.

    On a CUDA device the computation is captured at the first frame and replayed; elsewhere it just runs.
    """

    def __init__(
        self, conditioner: "Conditioner", memory: tuple[Tensor, Tensor], context: "Context", z: Tensor
    ) -> None:
        """Allocate what a frame reads and writes; z (B, T_mel, D) and the context's prior are read frame by frame."""
        from flowtron.model.flow import State

        self.conditioner, self.memory, self.context, self.z = conditioner, memory, context, z
        batch, hidden = len(z), conditioner.attention_lstm.hidden_size
        layers = conditioner.lstm.num_layers
        where = context.encoded.new_zeros(context.token_mask.shape)

        def zeros(n_layers: int) -> tuple[Tensor, Tensor]:
            return z.new_zeros(n_layers, batch, hidden), z.new_zeros(n_layers, batch, hidden)

        location = None if conditioner.location is None else (where, where.clone())
        self.frame: Tensor
        self.conditioning: Conditioning
        self.state = State(zeros(1), zeros(layers), location)
        self.previous, self.latent = torch.zeros_like(z[:, :1]), torch.zeros_like(z[:, 0])
        self.rows = {
            "attention_prior": None if context.attention_prior is None else context.attention_prior[:, :1].clone(),
            "attention": None if context.attention is None else context.attention[:, :1].clone(),
            "allowed": None if context.window is None else context.token_mask.clone(),
        }
        self.replay: Callable[[], object] = self._run
        if z.is_cuda:
            # Streams are those of the current device, which need not be the tensors'.
            with torch.cuda.device(z.device):
                self.replay = self._capture()

    @torch.no_grad()
    def _compute(self) -> tuple[Tensor, "Conditioning"]:
        """Compute a frame, leaving its state and the frame itself where the next one reads them."""
        here = replace(
            self.context,
            attention_prior=self.rows["attention_prior"],
            attention=self.rows["attention"],
            allowed=self.rows["allowed"],
        )
        conditioning, state = self.conditioner(self.previous, self.memory, here, self.state)
        frame = (self.latent - conditioning.shift[:, 0]) * (-conditioning.log_scale[:, 0]).exp()
        self.previous.copy_(frame[:, None])
        for kept, new in zip(_tensors(self.state), _tensors(state), strict=True):
            kept.copy_(new)
        return frame, conditioning

    def _run(self) -> None:
        self.frame, self.conditioning = self._compute()

    def _reset(self) -> None:
        for tensor in (self.previous, *_tensors(self.state)):
            tensor.zero_()

    def _capture(self) -> Callable[[], object]:
        # Libraries choose their algorithms and allocate at first use, which a capture does not allow: warm up, on a
        # stream of its own as torch asks.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_FRAMES):
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.frame, self.conditioning = self._compute()
        self._reset()
        return graph.replay

    @torch.no_grad()
    def __call__(self, t: int, allowed: Tensor | None) -> tuple[Tensor, "Conditioning"]:
        """Return frame t (B, D) and what it was conditioned on; frames come in order."""
        self.latent.copy_(self.z[:, t])
        sources = {"attention_prior": self.context.attention_prior, "attention": self.context.attention}
        for name, source in sources.items():
            row = self.rows[name]
            if row is not None and source is not None:
                row.copy_(source[:, t : t + 1])
        if allowed is not None and self.rows["allowed"] is not None:
            self.rows["allowed"].copy_(allowed)
        self.replay()
        # The next frame overwrites what this one computed.
        made = self.conditioning
        copies = made._replace(
            log_scale=made.log_scale.clone(),
            shift=made.shift.clone(),
            attention=made.attention.clone(),
            attention_logprob=made.attention_logprob.clone(),
            gate_logits=None if made.gate_logits is None else made.gate_logits.clone(),
        )
        return self.frame.clone(), copies


def _tensors(state: "State") -> list[Tensor]:
    return [tensor for pair in state if pair is not None for tensor in pair]
