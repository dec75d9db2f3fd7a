"""Scores of additive attention without the tensor of all pairs.

Letters: B batch, T frames, N tokens, A attention channels.
"""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from flowtron.kernels.build import load_library, pointer

LANES = 8
# exp(2 · 20) squared still fits float32, and tanh is ±1 in float32 from 9 on.
CLAMP = 20.0
# Pairs × channels that the fallback holds at a time: 16 MB in float32.
CHUNK_ELEMENTS = 1 << 22


def _exponential(x: Tensor) -> Tensor:
    """exp(2x) of a float32 (..., A), A padded to whole vectors."""
    padding = -x.shape[-1] % LANES
    return functional.pad((2 * x.clamp(-CLAMP, CLAMP)).exp_(), (0, padding)).contiguous()


def _kernel_forward(library: ctypes.CDLL, query: Tensor, key: Tensor, score: Tensor) -> Tensor:
    q, k = _exponential(query), _exponential(key)
    padded_score = functional.pad(score, (0, q.shape[-1] - score.shape[-1])).contiguous()
    (batch, frames, channels), tokens = q.shape, k.shape[1]
    scores = query.new_empty(batch, frames, tokens)
    library.additive_scores_forward(
        *map(pointer, (q, k, padded_score, scores)),
        *map(ctypes.c_int64, (batch, frames, tokens, channels)),
        ctypes.c_int(torch.get_num_threads()),
    )
    return scores


def _kernel_backward(
    library: ctypes.CDLL, grad: Tensor, query: Tensor, key: Tensor, score: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k = _exponential(query), _exponential(key)
    width = score.shape[-1]
    padded_score = functional.pad(score, (0, q.shape[-1] - width)).contiguous()
    (batch, frames, channels), tokens = q.shape, k.shape[1]
    grad_query, grad_key, grad_score = torch.empty_like(q), torch.empty_like(k), q.new_empty(batch, channels)
    grad = grad.contiguous()
    library.additive_scores_backward(
        *map(pointer, (q, k, padded_score, grad, grad_query, grad_key, grad_score)),
        *map(ctypes.c_int64, (batch, frames, tokens, channels)),
        ctypes.c_int(torch.get_num_threads()),
    )
    return grad_query[..., :width], grad_key[..., :width], grad_score[:, :width].sum(0)


def _chunks(query: Tensor, key: Tensor) -> list[slice]:
    """Return slices over frames such that the pairs of each fit CHUNK_ELEMENTS."""
    size = max(1, CHUNK_ELEMENTS // max(1, query.shape[0] * key.shape[1] * key.shape[2]))
    return [slice(t, t + size) for t in range(0, query.shape[1], size)]


def _torch_forward(query: Tensor, key: Tensor, score: Tensor) -> Tensor:
    parts = [(query[:, part, None] + key[:, None]).tanh_() @ score for part in _chunks(query, key)]
    return torch.cat(parts, 1) if parts else query.new_empty(*query.shape[:2], key.shape[1])


def _torch_backward(grad: Tensor, query: Tensor, key: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_score = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(score)
    for part in _chunks(query, key):
        pairs = (query[:, part, None] + key[:, None]).tanh_()
        weight = grad[:, part]
        grad_score += torch.einsum("btn,btna->a", weight, pairs)
        slope = pairs.square_().neg_().add_(1)
        grad_query[:, part] = torch.einsum("btn,btna->bta", weight, slope) * score
        grad_key += torch.einsum("btn,btna->bna", weight, slope) * score
    return grad_query, grad_key, grad_score


class _AdditiveScores(torch.autograd.Function):
    """Keeps query, key and score only; everything of size T · N · A is computed again in backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, score: Tensor) -> Tensor:
        ctx.library = load_library("attention") if query.device.type == "cpu" and query.dtype == torch.float32 else None
        ctx.save_for_backward(query, key, score)
        if ctx.library is None:
            return _torch_forward(query, key, score)
        return _kernel_forward(ctx.library, query, key, score)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if ctx.library is None:
            return _torch_backward(grad, *ctx.saved_tensors)
        return _kernel_backward(ctx.library, grad, *ctx.saved_tensors)


def additive_scores(query: Tensor, key: Tensor, score: Tensor) -> Tensor:
    """Score every token for every frame: e_btn = Σ_a score_a · tanh(query_bta + key_bna).

    The (B, T, N, A) tensor is never kept, neither for backward. Half precisions are computed in float32.

    Args:
        query: (B, T, A).
        key: (B, N, A).
        score: (A,).

    Returns:
        (B, T, N) scores, float32 or wider.
    """
    if math.prod(query.shape) * key.shape[1] == 0:
        return query.new_zeros(*query.shape[:2], key.shape[1])
    wide = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        result: Tensor = _AdditiveScores.apply(query.to(wide), key.to(wide), score.to(wide))
    return result
