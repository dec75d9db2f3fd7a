"""Pictures of attention, mel, gate and latent; used by TensorBoard, the command line and the web page alike."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from flowtron.speech import Speech

SQUARES = 2000  # more than a picture has pixels


def draw_attention(axes: Axes, attention: Tensor, title: str) -> None:
    """Draw attention (T_mel, T_text): frames to the right, tokens upward."""
    T_mel, T_text = attention.shape
    extent = (-0.5, T_mel - 0.5, -0.5, T_text - 0.5)
    picture = _shrunk(attention) if attention.is_sparse else attention.detach().float().cpu().numpy()
    axes.imshow(picture.T, aspect="auto", origin="lower", interpolation="nearest", extent=extent)
    axes.set(title=title, xlabel="frame", ylabel="token")


def _shrunk(attention: Tensor) -> np.ndarray:
    """Largest weights of sparse attention (T_mel, T_text) in squares, of which there are `SQUARES` a side at most."""
    attention = attention.detach().cpu().coalesce()
    sides = [-(-size // SQUARES) for size in attention.shape]
    picture = np.zeros([-(-size // side) for size, side in zip(attention.shape, sides)], dtype=np.float32)
    frames, tokens = (place.numpy() // side for place, side in zip(attention.indices(), sides))
    np.maximum.at(picture, (frames, tokens), attention.values().float().numpy())
    return picture


def draw_mel(axes: Axes, mel: Tensor, title: str) -> None:
    """Draw a log mel (n_mels, T_mel)."""
    axes.imshow(mel.detach().float().cpu().numpy(), aspect="auto", origin="lower", interpolation="nearest")
    axes.set(title=title, xlabel="frame", ylabel="mel channel")


def attention_figure(attention: list[Tensor], titles: list[str]) -> Figure:
    """Picture of several attention matrices (T_mel, T_text), one above the other."""
    figure = Figure(figsize=(8, 3 * len(attention)), layout="constrained")
    for axes, matrix, title in zip(np.atleast_1d(figure.subplots(len(attention))), attention, titles):
        draw_attention(axes, matrix, title)
    return figure


def mel_figure(mels: list[Tensor], titles: list[str]) -> Figure:
    """Picture of several log mels (n_mels, T_mel), one above the other."""
    figure = Figure(figsize=(8, 3 * len(mels)), layout="constrained")
    for axes, mel, title in zip(np.atleast_1d(figure.subplots(len(mels))), mels, titles):
        draw_mel(axes, mel, title)
    return figure


def gate_figure(gate_logits: Tensor) -> Figure:
    """Picture of the gate's probability over frames in order of processing, gate_logits (T_mel,)."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(gate_logits.detach().float().sigmoid().cpu().numpy())
    axes.set(title="gate", xlabel="frame, in order of processing", ylabel="probability", ylim=(-0.05, 1.05))
    return figure


def speech_figure(speech: "Speech") -> Figure:
    """Picture of an utterance: its mel above the attention of each step of flow."""
    n_flows = speech.attention.shape[0]
    figure = Figure(figsize=(10, 3 * (n_flows + 1)), layout="constrained")
    first, *rest = np.atleast_1d(figure.subplots(n_flows + 1))
    draw_mel(first, speech.mel, speech.text)
    for k, axes in enumerate(rest):
        draw_attention(axes, speech.attention[k], f"attention of step {k}")
    return figure
