"""Fundamental frequency of recordings, as a training target: normalised cross-correlation and dynamic programming.

Letters: B batch, T_mel frames, K pitch classes.
"""

import math

import torch
from torch import Tensor

from flowtron.audio import AudioSettings

F_MIN, F_MAX = 60.0, 420.0  # Hz
N_CLASSES = 160
WINDOW_SECONDS = 0.035
MAX_JUMP = 8  # classes between consecutive frames
JUMP_COST = 0.02  # of correlation, per class
OCTAVE_COST = 0.05  # of correlation, per octave below F_MAX: a multiple of the period fits as well as the period


def pitch_grid() -> Tensor:
    """Frequencies in Hz of the K pitch classes, evenly spaced in logarithm."""
    return torch.logspace(math.log10(F_MIN), math.log10(F_MAX), N_CLASSES, dtype=torch.float64).float()


def _correlations(wav: Tensor, settings: AudioSettings) -> Tensor:
    """Normalised cross-correlation (T_mel, K) of wav (T_samples,) at the period of every class."""
    rate = settings.sample_rate
    window, longest = int(WINDOW_SECONDS * rate), int(rate / F_MIN) + 2
    span = window + longest
    n_frames = wav.shape[0] // settings.hop_length + 1
    # A typical period lies centred on the frame.
    before = (window + int(rate / 150)) // 2
    padded = torch.nn.functional.pad(wav.float(), (before, span + settings.hop_length))
    frames = padded.unfold(0, span, settings.hop_length)[:n_frames]
    frames = frames - frames.mean(1, keepdim=True)
    n_fft = 1 << (span + window - 1).bit_length()
    head = torch.fft.rfft(frames[:, :window], n_fft)
    cross = torch.fft.irfft(head.conj() * torch.fft.rfft(frames, n_fft), n_fft)[:, : longest + 1]
    power = torch.nn.functional.pad(frames.double().square().cumsum(1), (1, 0))
    energy = (power[:, window : window + longest + 1] - power[:, : longest + 1]).float()
    # The floor lies far below speech, so that silence correlates with nothing.
    normalised = cross / ((energy[:, :1] * energy).sqrt() + window * 1e-7)
    lags = rate / pitch_grid()
    whole = lags.long()
    part = lags - whole
    return normalised[:, whole] * (1 - part) + normalised[:, whole + 1] * part


def track_pitch(wavs: list[Tensor], settings: AudioSettings) -> list[tuple[Tensor, Tensor]]:
    """Track the pitch of recordings, through unvoiced stretches as well.

    Args:
        wavs: each (T_samples,) in [-1, 1].
        settings: of the frames.

    Returns:
        For each its pitch in Hz (T_mel,) and how periodic it is (T_mel,), from 0 or below to 1.
    """
    scores = [_correlations(wav, settings) for wav in wavs]
    lengths = [len(score) for score in scores]
    stacked = torch.nn.utils.rnn.pad_sequence(scores, batch_first=True)
    grid = pitch_grid()
    stacked = stacked - OCTAVE_COST * (F_MAX / grid).log2()
    jumps = torch.arange(-MAX_JUMP, MAX_JUMP + 1)
    costs = JUMP_COST * jumps.abs().float()
    total = stacked[:, 0]
    came = []
    for t in range(1, stacked.shape[1]):
        around = torch.nn.functional.pad(total, (MAX_JUMP, MAX_JUMP), value=-1e9).unfold(1, 2 * MAX_JUMP + 1, 1)
        best, index = (around - costs).max(2)
        came.append(index - MAX_JUMP)
        # Padded frames leave the state where it was, so that every path can be read from the end.
        inside = (t < torch.tensor(lengths))[:, None]
        total = torch.where(inside, best + stacked[:, t], total)
        came[-1] = torch.where(inside, came[-1], torch.zeros_like(came[-1]))
    state = total.argmax(1)
    path = [state]
    for index in reversed(came):
        state = state + index.gather(1, state[:, None])[:, 0]
        path.append(state)
    states = torch.stack(path[::-1], 1)
    results = []
    for score, length, row in zip(scores, lengths, states):
        k = row[:length]
        periodicity = score.gather(1, k[:, None])[:, 0]
        # The vertex of the parabola through three neighbours refines the class.
        inner = k.clamp(1, N_CLASSES - 2)[:, None]
        left, middle, right = (score.gather(1, inner + d)[:, 0] for d in (-1, 0, 1))
        curvature = (left - 2 * middle + right).clamp(max=-1e-6)
        offset = (0.5 * (left - right) / curvature).clamp(-1, 1)
        step = math.log(F_MAX / F_MIN) / (N_CLASSES - 1)
        results.append((F_MIN * torch.exp((inner[:, 0] + offset) * step), periodicity))
    return results
