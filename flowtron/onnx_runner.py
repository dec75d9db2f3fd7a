"""Synthesis with ONNX Runtime and numpy alone: neither torch nor a compiler is needed.

    python -m flowtron.onnx_runner FOLDER "Hello." -o hello.wav

Reads what `flowtron export --format onnx` writes. Letters: N tokens, T_mel frames, D mel channels.
"""

import argparse
import json
import math
import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowtron.errors import InputError
from flowtron.text import Tokenizer

DESCRIPTION = "onnx.json"
FRAMES_PER_TOKEN = 12
FRAMES_AT_LEAST = 120
GRIFFIN_LIM_ROUNDS = 32


class Sample(NamedTuple):
    """mel (D, T_mel); attention, one (T_mel, N) per step of flow in natural order of time."""

    mel: np.ndarray
    attention: list[np.ndarray]


class OnnxFlowtron:
    """A model in a folder of ONNX graphs."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        """Open the graphs.

        Raises:
            InputError: onnxruntime is not installed, or the folder holds no exported model, or one of an older version.
        """
        try:
            import onnxruntime
        except ImportError:
            raise InputError("ONNX graphs need the package onnxruntime; run pip install onnxruntime.") from None
        folder = Path(folder)
        try:
            self.about: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(f"{folder}: no exported model; write one with flowtron export --format onnx.") from None
        if "n_speakers" not in self.about or "mixture" not in self.about:
            raise InputError(f"{folder}: exported by an older version; export the model again.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3

        def session(name: str) -> Any:
            try:
                return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
            except Exception:  # onnxruntime's have no other class in common
                raise InputError(f"{folder / name}: missing or not readable; export the model again.") from None

        self.encoder = session("encoder.onnx")
        self.steps = [session(f"step_{k}.onnx") for k in range(len(self.about["backward"]))]
        self.tokenizer = Tokenizer(
            tuple(self.about["symbols"]), tuple(self.about["cleaners"]), 1.0, self.about["keep_ambiguous"]
        )

    def encode(self, tokens: Sequence[int], speaker_id: int = 0) -> dict[str, np.ndarray]:
        """Return keys_k and values_k (1, N, channels) of every step; mean and log_std (1, N) if it has durations."""
        fed = {"tokens": np.array([tokens], dtype=np.int64), "speaker": np.array([speaker_id], dtype=np.int64)}
        names = [output.name for output in self.encoder.get_outputs()]
        return dict(zip(names, self.encoder.run(None, fed)))

    @staticmethod
    def durations(
        encoded: dict[str, np.ndarray], noise: np.ndarray | None = None, sigma: float = 1.0, rate: float = 1.0
    ) -> np.ndarray:
        """Return durations (N,) in whole frames; noise (N,) of N(0, 1), scaled by sigma; None for the expected ones."""
        mean, std = encoded["mean"][0], np.exp(encoded["log_std"][0])
        if noise is None:
            noise, sigma = np.zeros_like(std), 0.0
        exact = np.exp(mean + std * sigma * noise + 0.5 * std**2 * (1 - sigma**2)) / rate
        ends = np.round(np.cumsum(np.maximum(exact, 1.0)))
        return np.maximum(np.diff(ends, prepend=0.0), 1.0).astype(np.int64)

    def prior(self, durations: np.ndarray) -> np.ndarray:
        """Return the prior (T_mel, N) around the path of durations (N,): exp(−gap² / 2 width²), gap in frames."""
        ends = np.cumsum(durations)
        centre = np.arange(ends[-1])[:, None] + 0.5
        gap = np.maximum(ends - durations - centre, 0) + np.maximum(centre - ends, 0)
        return np.exp(-(gap**2) / (2 * self.about["path_width"] ** 2)).astype(np.float32)

    def inverse(
        self,
        encoded: dict[str, np.ndarray],
        z: np.ndarray,
        prior: np.ndarray | None = None,
        temperature: float = 1.0,
        gate_threshold: float | None = None,
    ) -> Sample:
        """Map z (D, T_mel) to mel, as `Flowtron.inverse` does.

        Args:
            encoded: from `encode`.
            z: latent in natural order of time.
            prior: (T_mel, N) multiplied into the attention.
            temperature: divides attention energies.
            gate_threshold: probability above which the gate ends the utterance; None never.
        """
        x = z.T.astype(np.float32)
        attentions: list[np.ndarray] = []
        for k in reversed(range(len(self.steps))):
            backward = self.about["backward"][k]
            rows = None if prior is None else prior[: len(x)]
            if backward:
                x, rows = x[::-1], None if rows is None else rows[::-1]
            is_last = k == len(self.steps) - 1
            x, attention = self._run_step(k, encoded, x, rows, temperature, gate_threshold if is_last else None)
            if backward:
                x, attention = x[::-1], attention[::-1]
            attentions.insert(0, attention)
        return Sample((x * self.about["mel_std"] + self.about["mel_mean"]).T, attentions)

    def _run_step(
        self,
        k: int,
        encoded: dict[str, np.ndarray],
        z: np.ndarray,
        prior: np.ndarray | None,
        temperature: float,
        gate_threshold: float | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One step of flow over z (T_mel, D) in order of processing: frames (T_mel, D) and attention (T_mel, N)."""
        session = self.steps[k]
        names = [output.name for output in session.get_outputs()]
        H, L = self.about["hidden"], self.about["lstm_layers"]
        fed = {f"{name}": encoded[f"{name}_{k}"] for name in ("keys", "values")}
        fed |= {name: np.zeros((1, 1, H), np.float32) for name in ("h0", "c0")}
        fed |= {name: np.zeros((L, 1, H), np.float32) for name in ("h", "c")}
        fed["temperature"] = np.array(temperature, np.float32)
        fed["previous"] = np.zeros((1, z.shape[1]), np.float32)
        ones = np.ones((1, fed["keys"].shape[1]), np.float32)
        frames, rows = [], []
        for t in range(len(z)):
            fed["z"] = z[t : t + 1]
            fed["prior"] = ones if prior is None else prior[t : t + 1]
            result = dict(zip(names, session.run(None, fed)))
            fed |= {name: result[f"next_{name}"] for name in ("h0", "c0", "h", "c")}
            fed["previous"] = result["frame"]
            frames.append(result["frame"][0])
            rows.append(result["attention"][0])
            if gate_threshold is not None and "gate_logit" in result:
                probability = 1 / (1 + np.exp(-float(result["gate_logit"][0])))
                if probability > gate_threshold:
                    break
        return np.array(frames), np.array(rows)

    def speaker_id(self, speaker: str | int | None) -> int:
        """Index of a speaker by name or number; None is the first.

        Raises:
            InputError: there is no such speaker.
        """
        names = self.about["speakers"]
        if speaker is None:
            return 0
        if str(speaker) in names:
            return int(names.index(str(speaker)))
        n_speakers = self.about["n_speakers"]
        if str(speaker).isdecimal() and int(speaker) < n_speakers:
            return int(speaker)
        known = ", ".join(names[:20]) or f"numbers below {n_speakers}"
        raise InputError(f"speaker {speaker!r} is not one of this model's ({known}); choose one of them.")

    def latent(self, n_frames: int, sigma: float, generator: np.random.Generator) -> np.ndarray:
        """Draw z (D, T_mel) from the prior: N(0, sigma²), or a mixture whose standard deviations sigma scales."""
        noise = sigma * generator.standard_normal((n_frames, self.about["n_mels"]))
        mixture = self.about["mixture"]
        if mixture is None:
            return noise.T
        mean, std = np.array(mixture["mean"]), np.array(mixture["std"])
        bounds = np.cumsum(mixture["prob"])[:-1]
        chosen = np.searchsorted(bounds, generator.random(noise.shape))
        channel = np.arange(noise.shape[1])
        return (mean[channel, chosen] + std[channel, chosen] * noise).T

    def __call__(
        self,
        text: str,
        speaker: str | int | None = None,
        sigma: float | None = None,
        seed: int = 1234,
        rate: float = 1.0,
    ) -> Sample:
        """Speak one sentence; arguments and their defaults are those of `Synthesizer`, the draw is numpy's.

        Raises:
            InputError: there is nothing to say, or no such speaker, or a number is out of its range.
        """
        sigma = self.about["sigma"] if sigma is None else sigma
        if not 0 <= sigma < math.inf:
            raise InputError(f"sigma is {sigma}, but it is a standard deviation; give 0 or more, for example 0.1.")
        if not 0 < rate < math.inf:
            raise InputError(f"rate is {rate}, but speech needs a positive one; give for example 1.2.")
        if seed < 0:
            raise InputError(f"seed is {seed}, but numpy draws from whole numbers of 0 or more; give one of these.")
        if not any(character.isalnum() for character in text):
            raise InputError(f"the text is {text[:60]!r}, with nothing to speak; give it at least one word.")
        tokens = self.tokenizer.encode_typed(text).tokens
        encoded = self.encode(tokens, self.speaker_id(speaker))
        generator = np.random.default_rng(seed)
        prior = None
        n_frames = int((FRAMES_AT_LEAST + FRAMES_PER_TOKEN * len(tokens)) / rate)
        if self.about["has_durations"]:
            noise = generator.standard_normal(len(tokens)) if sigma > 0 else None
            prior = self.prior(self.durations(encoded, noise, self.about["duration_share"] * sigma, rate))
            n_frames = len(prior)
        z = self.latent(n_frames, sigma, generator)
        return self.inverse(encoded, z, prior, 1.0, None if prior is not None else 0.5)

    def sound(self, mel: np.ndarray) -> np.ndarray:
        """Turn mel (D, T_mel) into wav (T_samples,) by Griffin-Lim; a neural vocoder sounds better."""
        about = self.about["audio"]
        magnitude = np.maximum(np.linalg.pinv(mel_filters(**about)) @ np.exp(mel.astype(np.float64)), 1e-5) ** 1.2
        n_fft, hop, win = about["n_fft"], about["hop_length"], about["win_length"]
        window = np.zeros(n_fft)
        window[(n_fft - win) // 2 :][:win] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / win)
        n_frames = magnitude.shape[1]
        at = hop * np.arange(n_frames)[:, None] + np.arange(n_fft)
        weight = np.zeros(at.max() + 1)
        # Tiled, since numpy 2.4 reads past the end of a value that it would have to broadcast here.
        np.add.at(weight, at, np.tile(window**2, (n_frames, 1)))
        phase = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitude.shape))
        for _ in range(GRIFFIN_LIM_ROUNDS):
            wav = np.zeros(len(weight))
            np.add.at(wav, at, np.fft.irfft(magnitude * phase, n_fft, axis=0).T * window)
            wav /= np.maximum(weight, 1e-8)
            spectrum = np.fft.rfft(wav[at] * window, axis=1).T
            phase = spectrum / np.maximum(np.abs(spectrum), 1e-12)
        wav = wav[n_fft // 2 :][: hop * n_frames]
        return (wav / max(1.0, float(np.abs(wav).max()))).astype(np.float32)


def mel_filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, **_: object) -> np.ndarray:
    """Return the mel filter bank (n_mels, n_fft // 2 + 1): triangles of equal area, Slaney's scale.

    The scale is linear below 1 kHz, 200 / 3 Hz a mel, and logarithmic above, 27 mels to a factor of 6.4.
    """

    def to_mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    mels = np.linspace(to_mel(f_min), to_mel(f_max), n_mels + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def save(path: str, wav: np.ndarray, sample_rate: int) -> None:
    """Write wav (T_samples,) in [-1, 1] as 16-bit PCM; sample_rate in Hz.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with open(path, "wb") as target, wave.open(target, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sample_rate)
            file.writeframes((wav * 32767).astype("<i2").tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place.") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="flowtron.onnx_runner", description="Speak a sentence without torch.")
    parser.add_argument("folder", help="what flowtron export --format onnx wrote")
    parser.add_argument("text")
    parser.add_argument("-i", "--speaker", default=None)
    parser.add_argument("-s", "--sigma", type=float, default=None, help="by the model")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("-o", "--output", default="speech.wav")
    options = parser.parse_args(arguments)
    try:
        voice = OnnxFlowtron(options.folder)
        mel = voice(options.text, options.speaker, options.sigma, options.seed, options.rate).mel
        save(options.output, voice.sound(mel), voice.about["audio"]["sample_rate"])
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return 130
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
