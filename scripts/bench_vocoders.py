"""Vocoders: WaveGlow against the original's computation, memory of long sounds, the light one, WaveNet's cache.

Weights are random where only speed is measured: it does not depend on them.
"""

import argparse

import torch
from bench_common import peak_memory_mb, per_unit, say, take_turns

from flowtron.audio import AudioSettings
from flowtron.vocoder import GriffinLim, bundled_vocoders, load_vocoder
from flowtron.vocoder.neural import WaveGlowVocoder
from flowtron.vocoder.waveglow import WaveGlow
from flowtron.vocoder.wavenet import Generator, WaveNet

SETTINGS = AudioSettings()
FRAMES_A_SECOND = SETTINGS.sample_rate / SETTINGS.hop_length
MEMORY = """
import torch
torch.set_num_threads(2)
from flowtron.audio import AudioSettings
from flowtron.vocoder.neural import WaveGlowVocoder
from flowtron.vocoder.waveglow import WaveGlow
vocoder = WaveGlowVocoder(WaveGlow(weight_norm=False), AudioSettings(), torch.bfloat16)
vocoder(torch.randn(1, 80, 2584) - 4)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--frames", type=int, default=172, help="frames of the sound that WaveGlow makes in a turn")
    parser.add_argument("--skip-memory", action="store_true", help="leave out the 30 seconds of the memory figure")


def waveglow(options: argparse.Namespace) -> dict[str, float | None]:
    """Full-size WaveGlow: the flow's layers one by one on the whole sound, as the original has them, and the engine."""
    torch.manual_seed(0)
    model = WaveGlow(weight_norm=False).eval()
    mel = torch.randn(1, SETTINGS.n_mels, options.frames) - 4
    z = 0.6 * torch.randn(1, 8, options.frames * 32)
    engines = {
        "float32": WaveGlowVocoder(model, SETTINGS),
        "bfloat16": WaveGlowVocoder(model, SETTINGS, torch.bfloat16),
    }

    def original() -> None:
        with torch.inference_mode():
            model.inverse(z, mel)

    contenders = {"as the original": original}
    contenders |= {name: lambda engine=engine: engine(mel) for name, engine in engines.items()}  # type: ignore[misc]
    seconds = options.frames / FRAMES_A_SECOND
    medians = per_unit(
        take_turns(contenders, options.rounds), dict.fromkeys(contenders, seconds), "per second of sound"
    )
    fast = {name: medians["as the original"] / medians[name] for name in engines}
    return {
        "waveglow_full_speedup": max(fast.values()),
        "waveglow_full_speedup_float32": fast["float32"],
        "waveglow_full_realtime": 1 / min(medians.values()),
    }


def wavenet(options: argparse.Namespace) -> dict[str, float | None]:
    """WaveNet of configs/wavenet.json: a sample from its layers' caches, and from its receptive field anew."""
    torch.manual_seed(0)
    net = WaveNet(weight_norm=False).eval()
    field = net.receptive_field
    conditioning = torch.randn(1, SETTINGS.n_mels, 256)
    window = torch.randn(1, SETTINGS.n_mels, field), 0.1 * torch.randn(1, field)
    uniforms = torch.rand(16, 256, 2)
    with torch.inference_mode():
        young, old, many = Generator(net, 1), Generator(net, 1), Generator(net, 16)
        for _ in range(20):
            old(conditioning, uniforms[:1])

        def anew() -> None:
            with torch.inference_mode():
                net.predict(window[1], window[0])

        def run(generator: Generator, batch: int) -> None:
            with torch.inference_mode():
                generator(conditioning.expand(batch, -1, -1), uniforms[:batch])

        contenders = {
            "receptive field anew": anew,
            "cached, at the start": lambda: run(young, 1),
            "cached, much later": lambda: run(old, 1),
            "cached, 16 side by side": lambda: run(many, 16),
        }
        units = dict(zip(contenders, (1.0, 256.0, 256.0, 16 * 256.0)))
        medians = per_unit(take_turns(contenders, options.rounds), units, "per sample")
    return {
        "wavenet_cache_speedup": medians["receptive field anew"] / medians["cached, much later"],
        "wavenet_late_to_early_cost": medians["cached, much later"] / medians["cached, at the start"],
        "wavenet_realtime": 1 / (medians["cached, 16 side by side"] * SETTINGS.sample_rate),
    }


def others(options: argparse.Namespace) -> dict[str, float | None]:
    """The vocoders that are fast enough to be heard at once, on ten seconds."""
    mel = torch.randn(1, SETTINGS.n_mels, 862) - 5
    vocoders = {"griffin_lim": GriffinLim(SETTINGS, n_iter=60)}
    vocoders |= {name: load_vocoder(name) for name in bundled_vocoders()}  # type: ignore[misc]
    contenders = {name: lambda v=vocoder: v(mel) for name, vocoder in vocoders.items()}  # type: ignore[misc]
    medians = per_unit(
        take_turns(contenders, options.rounds), dict.fromkeys(contenders, 862 / FRAMES_A_SECOND), "per second of sound"
    )
    light = medians.get("light")
    return {
        "light_realtime": None if light is None else 1 / light,
        "griffin_lim_realtime": 1 / medians["griffin_lim"],
    }


def run(options: argparse.Namespace) -> dict[str, float | None]:
    """Measure."""
    figures = waveglow(options)
    figures["waveglow_full_peak_mb_30s"] = None
    if not options.skip_memory:
        say("30 seconds of WaveGlow in a process of its own")
        figures["waveglow_full_peak_mb_30s"] = peak_memory_mb(MEMORY)
    return {**figures, **others(options), **wavenet(options)}
