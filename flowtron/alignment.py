"""Measures of an attention matrix: does it walk through the whole text, once, in order?

Letters: T_mel frames, T_text tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE_TOKENS = 4  # a step over fewer tokens is a soft peak's wobble, not a skipped or repeated word
SMOOTHING_FRAMES = 5
COVERED_WEIGHT = 0.2


@dataclass(frozen=True)
class AlignmentReport:
    """What an attention matrix does.

    diagonality: 1 on the straight line from corner to corner, 0 half a text away from it on average. coverage: share
    of tokens that some frame attends to. sharpness: mean weight of each frame's strongest token. skips, repeats:
    jumps over more than a few tokens, forward and backward. starts_late, ends_early: tokens missing at either end.
    """

    diagonality: float
    coverage: float
    sharpness: float
    skips: int
    repeats: int
    starts_late: bool
    ends_early: bool

    @property
    def is_complete(self) -> bool:
        """Whether the attention is monotonic and visits the text from start to end."""
        return self.faults == 0

    @property
    def faults(self) -> int:
        """Number of skips, repeats and missing ends."""
        return self.skips + self.repeats + self.starts_late + self.ends_early

    @property
    def complaint(self) -> str:
        """What is wrong, in words; empty where the attention is complete."""
        counted = [(self.skips, "skip"), (self.repeats, "repeat")]
        parts = [f"{number} {what}{'s' * (number > 1)}" for number, what in counted if number]
        parts += ["the start is missing"] * self.starts_late + ["the end is missing"] * self.ends_early
        return ", ".join(parts)

    @property
    def score(self) -> float:
        """One number from 0 to 1: the coverage, halved by every fault."""
        return self.coverage * 0.5**self.faults


def alignment_report(attention: Tensor) -> AlignmentReport:
    """Judge an attention matrix (T_mel, T_text) in natural order of time, with no padding.

    The position of a frame is its strongest token, smoothed by a running median so that single frames do not count.
    """
    weights = attention.detach().float()
    T_mel, T_text = weights.shape
    peaks, tokens = weights.max(1)
    half = SMOOTHING_FRAMES // 2
    padded = torch.nn.functional.pad(tokens[None, None].float(), (half, half), mode="replicate")[0, 0]
    position = padded.unfold(0, SMOOTHING_FRAMES, 1).median(1).values
    moves = position.diff()
    line = torch.linspace(0, 1, T_mel)
    where = tokens.float().cpu() / max(1, T_text - 1)
    tolerance = min(TOLERANCE_TOKENS, max(1, T_text // 2))
    return AlignmentReport(
        diagonality=float((1 - 2 * (where - line).abs().mean()).clamp(0, 1)) if T_text > 1 else 1.0,
        coverage=float((weights.max(0).values > COVERED_WEIGHT).float().mean()),
        sharpness=float(peaks.mean()),
        skips=int((moves > tolerance).sum()),
        repeats=int((moves < -tolerance).sum()),
        starts_late=bool(position[0] > tolerance),
        ends_early=bool(position[-1] < T_text - 1 - tolerance),
    )
