"""Copy synthesis of held-out recordings by every vocoder: size, speed, quality, intelligibility, in one run.

    python scripts/evaluate_vocoders.py --files corpus/test.txt --count 40 --json

Quality is DNSMOS overall, intelligibility the word error rate of whisper-base, both beside those of the recordings.
Operations are multiply-adds of the network per second of sound, counted by torch; Griffin-Lim's are its transforms'.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowtron.audio import load_wav, log_mel
from flowtron.checkpoint import VOCODER_DESCRIPTION, read_vocoder
from flowtron.data import Utterance, read_filelist
from flowtron.evaluate import dnsmos, listen, rate
from flowtron.vocoder import GriffinLim, bundled_vocoders, load_vocoder
from flowtron.vocoder.base import Vocoder
from flowtron.vocoder.loading import WEIGHTS


def chosen(files: str, count: int) -> list[Utterance]:
    """The first recordings of a filelist, the speakers in turn."""
    rows = read_filelist(files)
    speakers = sorted({row.speaker for row in rows})
    by_speaker = [[row for row in rows if row.speaker == speaker] for speaker in speakers]
    return [row for turn in zip_longest(*by_speaker) for row in turn if row is not None][:count]


def operations(vocoder: Vocoder) -> float:
    """Multiply-adds per second of sound: counted for networks, 5/2 n log2 n a transform for Griffin-Lim."""
    settings = vocoder.settings
    frames = settings.sample_rate / settings.hop_length
    if isinstance(vocoder, GriffinLim):
        return (2 * vocoder.n_iter + 1) * frames * 2.5 / 2 * settings.n_fft * math.log2(settings.n_fft)
    mel = torch.zeros(1, settings.n_mels, 86) - 5
    with FlopCounterMode(display=False) as counter:
        vocoder(mel)
    return counter.get_total_flops() / 2 * frames / 86


def n_parameters(name: str) -> int:
    """Numbers in a vocoder's file."""
    folder = WEIGHTS / name if name in bundled_vocoders() else Path(name)
    if not (folder / VOCODER_DESCRIPTION).is_file():
        return 0
    return sum(value.numel() for value in read_vocoder(folder).state.values())


def measure(name: str, vocode: Vocoder | None, rows: Sequence[Utterance], with_words: bool) -> dict[str, object]:
    """Measure a vocoder, or the recordings themselves when it is None."""
    quality, words, took, seconds = [], [], 0.0, 0.0
    for row in rows:
        wav: Tensor = load_wav(row.path)
        rate_hz = 22050
        if vocode is not None:
            rate_hz = vocode.settings.sample_rate
            mel = log_mel(wav, vocode.settings)[None]
            vocode(mel[..., :20])
            started = time.perf_counter()
            wav = vocode(mel)[0]
            took, seconds = took + time.perf_counter() - started, seconds + wav.shape[0] / rate_hz
        quality.append(dnsmos(wav.numpy(), rate_hz))
        if with_words:
            heard = listen(row.text, wav.numpy(), rate_hz)
            words.append((heard.word_errors, heard.words))
    generator = np.random.default_rng(0)
    draws = np.array(quality)[generator.integers(0, len(quality), (1000, len(quality)))].mean(1)
    speakers = sorted({row.speaker for row in rows})
    return {
        "parameters": n_parameters(name) if vocode is not None else None,
        "operations_per_second": None if vocode is None else operations(vocode),
        "realtime": None if vocode is None else seconds / took,
        "dnsmos": float(np.mean(quality)),
        "dnsmos_interval": [float(x) for x in np.percentile(draws, [2.5, 97.5])],
        "dnsmos_by_speaker": {
            s: float(np.mean([q for q, row in zip(quality, rows) if row.speaker == s])) for s in speakers
        },
        "wer": rate(words) if words else None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocoders", nargs="*", help="names or folders; the bundled ones and Griffin-Lim when none")
    parser.add_argument("--files", default="corpus/test.txt", help="filelist of held-out recordings")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-words", action="store_true", help="leave out the word error rate, which takes longest")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = chosen(options.files, options.count)
    vocoders: dict[str, Vocoder | None] = {"recordings": None}
    if not options.vocoders:
        # Plain as published, and with momentum and sharpening as it is the default here.
        vocoders["griffin_lim, 60 plain"] = GriffinLim(n_iter=60, momentum=0.0, power=1.0)
        vocoders["griffin_lim, 60"] = GriffinLim(n_iter=60)
    for name in options.vocoders or ["griffin_lim", *bundled_vocoders()]:
        vocoders[name] = load_vocoder(name)
    results: dict[str, dict[str, object]] = {}
    if not options.json:
        print("| vocoder | parameters | multiply-adds per second | real time | DNSMOS | word errors |")
        print("|---|---|---|---|---|---|")
    for name, vocoder in vocoders.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        row = results[name] = measure(name, vocoder, rows, not options.no_words)
        if not options.json:
            cells = [
                "" if row["parameters"] is None else f"{row['parameters']:,}",
                "" if row["operations_per_second"] is None else f"{row['operations_per_second'] / 1e9:.3f} G",
                "" if row["realtime"] is None else f"{row['realtime']:.0f} x",
                f"{row['dnsmos']:.3f} ({row['dnsmos_interval'][0]:.3f} to {row['dnsmos_interval'][1]:.3f})",  # type: ignore[index]
                "" if row["wer"] is None else f"{row['wer']['value']:.2f} %",  # type: ignore[index]
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if options.json:
        print(json.dumps({"recordings_measured": len(rows), "vocoders": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
