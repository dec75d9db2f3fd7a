"""Measure free-running inference against a plain loop that computes as the original does.

Full-size random weights, 80 tokens. Contenders take turns in every round, so that whatever else the machine does falls
on all of them; figures are medians over the rounds. `python scripts/bench_inference.py --json` prints them alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from plain_flowtron import PlainFlowtron
from torch import Tensor

from flowtron.config import ModelConfig
from flowtron.kernels.step import _folds, run_step
from flowtron.kernels.step_weights import StepWeights
from flowtron.model import Flowtron, build_model
from flowtron.model.flow import TimeReversed

FULL = ModelConfig()
TOKENS = 80
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
PROBE_FLOATS = 64 << 20


def random_model(config: ModelConfig) -> Flowtron:
    """Build a model whose output layers are not zero, so that frames depend on one another."""
    torch.manual_seed(0)
    model = build_model(config).eval().requires_grad_(False)
    for flow in model.flows:
        torch.nn.init.normal_(flow.conditioner.output.weight, std=0.1 / config.n_hidden**0.5)
    return model


def infer(model: Flowtron, weights: list[StepWeights], z: Tensor, tokens: Tensor) -> Tensor:
    """Map z (B, D, T_mel) to mel with the step kernel, the encoder included."""
    token_lengths = torch.full(tokens.shape[:1], tokens.shape[1])
    encoded = model.encode(tokens, token_lengths, torch.zeros(len(tokens), dtype=torch.long))
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    x = z.transpose(1, 2)
    for flow, step in reversed(list(zip(model.flows, weights))):
        keys, values = flow.conditioner.memory(encoded)
        if isinstance(flow, TimeReversed):
            x = run_step(step, x.flip(1), keys, values, mask).x.flip(1)
        else:
            x = run_step(step, x, keys, values, mask).x
    return x.transpose(1, 2)


def take_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every contender once a round, after one untimed turn each; return seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def bytes_per_frame(weights: list[StepWeights]) -> int:
    """Bytes of weights that one frame of batch 1 reads, over all steps of flow."""
    total = 0
    for step in weights:
        total += step.n_bytes
        context = step.lstm[0].context
        if context is not None and _folds(step, 1, TOKENS):
            total += TOKENS * 4 * step.hidden * 4 - context.panels.numel() * context.panels.element_size()
    return total


def run(rounds: int = 7, frames: int = 400, threads: int = 2) -> dict[str, float]:
    """Measure and return the figures by name; print them with their spread."""
    torch.set_num_threads(threads)
    model = random_model(FULL)
    plain = PlainFlowtron(FULL).eval()
    plain.load_state_dict(model.state_dict())
    packed = {
        name: [StepWeights.from_conditioner(flow.conditioner, dtype) for flow in model.flows]
        for name, dtype in DTYPES.items()
    }
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, FULL.n_text, (1, TOKENS), generator=generator)
    z = 0.5 * torch.randn(16, FULL.n_mel_channels, 5000, generator=generator)
    probe = torch.ones(PROBE_FLOATS)
    few = frames // 10
    speaker = torch.zeros(1, dtype=torch.long)

    error = (
        infer(model, packed["float32"], z[:1, :, :few], tokens) - plain.infer(z[:1, :, :few], tokens, speaker)
    ).abs()
    assert error.max() < 1e-4, f"The fast and the plain loop differ by {error.max()}."

    contenders: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.infer(z[:1, :, :few], tokens, speaker),
        "read": lambda: [probe.sum() for _ in range(4)],
        "batch16": lambda: infer(model, packed["float32"], z[:, :, :few], tokens.expand(16, -1)),
        **{name: (lambda w=w: infer(model, w, z[:1, :, :frames], tokens)) for name, w in packed.items()},
    }
    units = {"plain": few, "read": 4, "batch16": 16 * few}
    seconds = take_turns(contenders, rounds)
    each = {name: [s / units.get(name, frames) for s in turns] for name, turns in seconds.items()}
    length = {f"{n} frames": (lambda n=n: infer(model, packed["int8"], z[:1, :, :n], tokens)) for n in (200, 5000)}
    by_length = take_turns(length, max(1, rounds // 2))
    each |= {name: [s / int(name.split()[0]) for s in turns] for name, turns in by_length.items()}
    for name, turns in each.items():
        low, middle, high = (1e3 * f(turns) for f in (min, statistics.median, max))
        print(f"{name:12s} {middle:8.3f} ms a frame and item ({low:.3f} to {high:.3f})")
    of = {name: statistics.median(turns) for name, turns in each.items()}
    bandwidth = 4 * PROBE_FLOATS / of["read"]
    figures = {
        "infer_full_speedup": of["plain"] / min(of[name] for name in DTYPES),
        "infer_full_speedup_float32": of["plain"] / of["float32"],
        "infer_full_speedup_bfloat16": of["plain"] / of["bfloat16"],
        "infer_full_speedup_int8": of["plain"] / of["int8"],
        "batch16_gain": of["float32"] / of["batch16"],
        "frame_time_ratio_5000_vs_200": of["5000 frames"] / of["200 frames"],
        "bandwidth_share": bytes_per_frame(packed["float32"]) / of["float32"] / bandwidth,
        "memory_bandwidth_gb_s": bandwidth / 1e9,
    }
    return {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    results = run(options.rounds, options.frames, options.threads)
    print(json.dumps(results) if options.json else "\n".join(f"{k}: {v}" for k, v in results.items()))
