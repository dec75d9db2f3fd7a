"""Measure how batches are made: mels and tokens computed and from the cache, the prior, and what share of a training
step the loading of the second epoch takes.

Noises of 500 frames; the step is that of the demo's model with batches of 16.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from bench_common import per_unit, say, take_turns
from bench_training import stepper, write_noise

from flowtron.audio import AudioSettings
from flowtron.config import TrainConfig
from flowtron.data import Dataset, LengthBucketBatchSampler, SpeakerTable, make_loader, read_filelist
from flowtron.run import mixed_precision
from flowtron.text import Tokenizer

UTTERANCES, BATCH = 64, 16


def run(options: argparse.Namespace) -> dict[str, float | None]:
    """Measure and return the figures by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = read_filelist(write_noise(folder, UTTERANCES))
        speakers = SpeakerTable.from_utterances(rows)

        def dataset(cache: Path | None) -> Dataset:
            return Dataset(rows, Tokenizer(p_arpabet=0.9), AudioSettings(), speakers, cache)

        plain, cached = dataset(None), dataset(folder / "cache")
        indices = range(UTTERANCES)
        contenders = {
            "computed": lambda: [plain[i] for i in indices],
            "cached": lambda: [cached[i] for i in indices],
        }
        each = per_unit(
            take_turns(contenders, max(1, options.rounds // 2)), dict.fromkeys(contenders, float(UTTERANCES)), "an item"
        )
        sampler = LengthBucketBatchSampler(cached.lengths(), batch_size=BATCH, n_epochs=1 + options.rounds)
        waits: list[float] = []
        loader = iter(make_loader(cached, sampler, 0, attention_prior=True))
        while True:
            started = time.perf_counter()
            if next(loader, None) is None:
                break
            waits.append(time.perf_counter() - started)
        second_epoch = waits[UTTERANCES // BATCH :]
        is_half = mixed_precision(TrainConfig(fp16_run=True)) == "bf16"  # as configs/demo.json asks for
        step = stepper("demo", "bfloat16" if is_half else "float32")
        seconds = statistics.median(take_turns({"step": step}, max(1, options.rounds // 2))["step"])
    say(
        f"a batch of {BATCH} in the second epoch {1e3 * statistics.median(second_epoch):.2f} ms, a step {seconds:.2f} s"
    )
    return {
        "cache_speedup": each["computed"] / each["cached"],
        "second_epoch_loading_share": statistics.median(second_epoch) / seconds,
    }
