"""Measure training steps against a plain implementation that computes as the original does: time and peak memory, cost
against length, the prior, and two processes against one.

Full size: the original's config, batch 6. Demo size: configs/demo.json's model, batch 16. 500 frames and 90 tokens; a
step is forward, backward, clipping and optimizer. The plain contender has packed sequences, the whole attention
tensor, float32; ours runs in float32 and, where the processor has it, with bfloat16 products.

All utterances of a batch are as long: torch then runs a packed LSTM as one oneDNN kernel, which is the plain
contender's best case. Where they differ, as in a corpus they do, it takes a step of the LSTM at a time: that case is
measured apart ("uneven", one round).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from bench_common import peak_memory_mb, per_unit, say, take_turns
from plain_flowtron import PlainFlowtron

from flowtron.audio import save_wav
from flowtron.config import ModelConfig, TrainConfig, load_config, parse_config
from flowtron.data import Batch, beta_binomial_prior
from flowtron.device import keep_freed_memory
from flowtron.model import build_model
from flowtron.objective import Objective
from flowtron.optim import build_optimizer
from flowtron.run import mixed_precision
from flowtron.train import prepare, step, steps

HERE = Path(__file__).resolve().parent
FULL = ModelConfig()
DEMO = load_config(HERE.parent / "configs/demo.json").model.model_copy(
    update={"aligner_dim": 0, "mel_mean": 0.0, "mel_std": 1.0}
)
SIZES = {"full": (FULL, 6), "demo": (DEMO, 16)}
FRAMES, TOKENS = 500, 90
# The shortest utterance of an uneven batch over the longest, about what length buckets leave.
UNEVEN = 0.8
GOALS = {
    "train_full_speedup": "at least 3",
    "train_full_memory_ratio": "at most 1/3",
    "train_demo_speedup": "at least 4",
    "prior_speedup": "at least 50",
    "ddp2_scaling": "at least 1.8",
}
TRAIN = TrainConfig(use_ctc_loss=False)


def random_batch(batch_size: int, n_frames: int = FRAMES, shortest: float = 1.0) -> Batch:
    """Utterances from shortest times n_frames to n_frames."""
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(batch_size, 80, n_frames, generator=generator) - 5
    tokens = torch.randint(1, 185, (batch_size, TOKENS), generator=generator)
    shares = torch.linspace(shortest, 1, batch_size)
    lengths = (shares * TOKENS).long(), (shares * n_frames).long()
    return Batch(tokens, lengths[0], mel, lengths[1], torch.zeros(batch_size).long(), None, ["-"] * batch_size)


def loss_function(
    size: str, kind: str, n_frames: int = FRAMES, shortest: float = 1.0
) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """A contender's model and the loss of a batch."""
    config, batch_size = SIZES[size]
    torch.manual_seed(0)
    batch = random_batch(batch_size, n_frames, shortest)
    if kind == "plain":
        plain = PlainFlowtron(config).train()
        names = ("mel", "mel_lengths", "tokens", "token_lengths", "speaker_id")
        named = {name: getattr(batch, name) for name in names}
        return plain, lambda: plain.loss(named)
    objective = Objective(build_model(config), TRAIN, use_prior=False).train()

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
            return objective(batch, 0).total

    return objective.model, loss


def stepper(size: str, kind: str, n_frames: int = FRAMES, shortest: float = 1.0) -> Callable[[], None]:
    """A contender's whole training step."""
    if kind != "plain":
        keep_freed_memory()  # as our training does
    model, loss = loss_function(size, kind, n_frames, shortest)
    optimizer = build_optimizer(model.parameters(), TRAIN)

    def run() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run


def assert_same_computation() -> None:
    """Ours and the plain loss and gradient agree, with the same weights and dropout off."""
    (plain, plain_loss), (ours, our_loss) = (loss_function("demo", kind, 60, UNEVEN) for kind in ("plain", "float32"))
    for name, weight in ours.named_parameters():
        if name.endswith("output.weight"):
            torch.nn.init.normal_(weight, std=0.02)
    plain.load_state_dict(ours.state_dict())
    norms = []
    for model, loss in ((plain, plain_loss), (ours, our_loss)):
        value = loss_in_evaluation(model, loss)
        value.backward()
        norms.append([float(value.detach()), *(float(p.grad.norm()) for _, p in sorted(model.named_parameters()))])
    error = np.abs(np.array(norms[0]) - norms[1]) / (1e-3 + np.abs(norms[0]))
    assert error.max() < 1e-3, f"The fast and the plain step differ by {error.max():.1e}."


def loss_in_evaluation(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Loss with dropout off."""
    model.eval()
    return loss()


def step_memory_mb(size: str, kind: str, threads: int, n_frames: int = FRAMES) -> float:
    """Peak memory of a process that takes two steps."""
    return peak_memory_mb(
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import torch; torch.set_num_threads({threads})\n"
        f"from bench_training import stepper\nrun = stepper({size!r}, {kind!r}, {n_frames})\nrun()\nrun()"
    )


def step_flops(config: ModelConfig, batch: Batch) -> float:
    """Floating point operations of the matrix products of a step: a forward pass, and two as much backward."""
    width, channels = config.n_text_dim + config.n_speaker_dim, config.n_attn_channels
    frames, tokens = batch.mel.shape[0] * batch.mel.shape[2], batch.tokens.numel()
    pairs = frames * batch.tokens.shape[1]
    lstm = (config.n_mel_channels + config.n_hidden) * 4 * config.n_hidden
    lstm += (config.n_hidden + channels + config.n_hidden) * 4 * config.n_hidden
    lstm += (config.n_lstm_layers - 1) * 8 * config.n_hidden**2
    dense = 2 * config.n_hidden**2 + config.n_hidden * (channels + 2 * config.n_mel_channels)
    flow = frames * (lstm + dense) + pairs * channels + 2 * tokens * width * channels
    encoder = tokens * (15 * config.n_text_dim**2 + 2 * 4 * (config.n_text_dim // 2) * 3 * (config.n_text_dim // 2))
    return 3 * 2.0 * (config.n_flows * flow + encoder)


def peak_flops(dtype: torch.dtype) -> float:
    """Largest measured rate of a matrix product of this machine."""
    a, b = torch.randn(3072, 1024).to(dtype), torch.randn(4096, 1024).to(dtype)
    seconds = take_turns({"product": lambda: torch.nn.functional.linear(a, b)}, 15)["product"]
    return 2 * 3072 * 1024 * 4096 / min(seconds)


def scipy_prior(n_tokens: int, n_frames: int) -> np.ndarray:
    """The prior frame by frame, as the original computes it."""
    k = np.arange(n_tokens)
    return np.array([scipy.stats.betabinom(n_tokens - 1, i, n_frames + 1 - i).pmf(k) for i in range(1, n_frames + 1)])


def write_noise(folder: Path, n_utterances: int, n_frames: int = FRAMES) -> Path:
    """Noises of about n_frames frames as a corpus; return the filelist."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for k in range(n_utterances):
        wav = 0.1 * torch.randn((n_frames - k % 8) * 256, generator=generator)
        save_wav(folder / f"{k}.wav", wav, 22050)
        lines.append(f"{k}.wav|{'a training sentence of some ninety letters, which is what such corpora have: '}{k}.|0")
    (folder / "train.txt").write_text("\n".join(lines))
    return folder / "train.txt"


def worker(config_file: str, n_steps: int) -> None:
    """Train as one of several processes; the first prints the frames it took and the seconds."""
    state = prepare(parse_config(json.loads(Path(config_file).read_text())))
    started, frames = 0.0, 0
    for number, batches in zip(range(n_steps + 2), steps(state)):
        if number == 2:  # two to warm up
            state.accelerator.wait_for_everyone()
            started = time.perf_counter()
        step(state, batches)
        frames += sum(sum(batch.n_frames) for batch in batches) * (number >= 2)
    state.accelerator.wait_for_everyone()
    if state.accelerator.is_main_process:
        print("speed", frames * state.accelerator.num_processes / (time.perf_counter() - started))


def frames_per_second(config_file: Path, n_processes: int, n_steps: int) -> float:
    """Training speed over all processes of one thread each, joined by gloo as torchrun does."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = str(listener.getsockname()[1])
    program = f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom bench_training import worker\n"
    program += f"worker({str(config_file)!r}, {n_steps})"
    base = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(n_processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes)}
        environment = {**base, **(ranks if n_processes > 1 else {})}
        processes.append(
            subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, stdout=subprocess.PIPE)
        )
    said = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), "A training process failed."
    return float(said[0].rsplit("speed", 1)[1])


def scaling(rounds: int, n_steps: int = 6) -> float:
    """Frames per second of two processes over that of one, each with the demo's batches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filelist = write_noise(folder, 64)
        config = load_config(HERE.parent / "configs/demo.json")
        config.train = TRAIN.model_copy(
            update={"output_directory": str(folder / "run"), "batch_size": 8, "n_threads": 1, "fp16_run": True}
        )
        config.data.training_files = config.data.validation_files = str(filelist)
        config.data.feature_cache_path, config.data.frames_per_batch = str(folder / "cache"), 0
        config.model = DEMO
        (folder / "config.json").write_text(json.dumps(config.to_json()))
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for n_processes, measured in speeds.items():
                measured.append(frames_per_second(folder / "config.json", n_processes, n_steps))
    for n_processes, measured in speeds.items():
        say(f"{n_processes} processes: {statistics.median(measured):.0f} frames/s")
    return statistics.median(speeds[2]) / statistics.median(speeds[1])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--sizes", nargs="*", default=["full", "demo"], choices=["full", "demo"])
    parser.add_argument("--lengths", nargs="*", type=int, default=[200, 800, 3200])
    parser.add_argument("--skip-processes", action="store_true", help="leave out the run of two processes")


def run(options: argparse.Namespace) -> dict[str, float | None]:
    """Measure and return the figures by name."""
    assert_same_computation()
    kinds = ["plain", "float32"]
    if mixed_precision(TrainConfig(fp16_run=True)) == "bf16":
        kinds.append("bfloat16")
    figures: dict[str, float | None] = {}
    rounds = max(1, options.rounds // 2)
    for size in options.sizes:
        config, batch_size = SIZES[size]
        contenders = {kind: stepper(size, kind) for kind in kinds}
        seconds = per_unit(take_turns(contenders, rounds), dict.fromkeys(kinds, 1.0), f"a step, {size} size")
        contenders.clear()
        memory = {kind: step_memory_mb(size, kind, options.threads) for kind in kinds}
        say(", ".join(f"{kind} {value:.0f} MB" for kind, value in memory.items()))
        fastest = min(kinds[1:], key=lambda kind: seconds[kind])
        figures[f"train_{size}_speedup"] = seconds["plain"] / seconds[fastest]
        figures[f"train_{size}_memory_ratio"] = memory[fastest] / memory["plain"]
        figures[f"train_{size}_speedup_float32"] = seconds["plain"] / seconds["float32"]
        figures[f"train_{size}_memory_ratio_float32"] = memory["float32"] / memory["plain"]
        uneven = {kind: stepper(size, kind, shortest=UNEVEN) for kind in ("plain", fastest)}
        seconds_uneven = per_unit(take_turns(uneven, 1), dict.fromkeys(uneven, 1.0), f"a step, {size} size, uneven")
        uneven.clear()
        figures[f"train_{size}_speedup_uneven"] = seconds_uneven["plain"] / seconds_uneven[fastest]
        if size == options.sizes[0]:
            flops = step_flops(config, random_batch(batch_size))
            figures["matmul_peak_share"] = flops / seconds["float32"] / peak_flops(torch.float32)
            if "bfloat16" in kinds:
                share = flops / seconds["bfloat16"] / peak_flops(torch.bfloat16)
                figures["matmul_peak_share_bfloat16"] = share
    tokens = TOKENS
    priors = {
        "scipy, frame by frame": lambda: scipy_prior(tokens, FRAMES),
        "ours": lambda: [beta_binomial_prior(tokens, FRAMES) for _ in range(20)],
    }
    error = np.abs(scipy_prior(tokens, 40) - beta_binomial_prior(tokens, 40).numpy()).max()
    assert error < 1e-6, f"The priors differ by {error}."
    each = per_unit(take_turns(priors, rounds), {"scipy, frame by frame": 1, "ours": 20}, "a prior of 500 x 90")
    figures["prior_speedup"] = each["scipy, frame by frame"] / each["ours"]
    if options.lengths:
        runs = {f"{n} frames": stepper("demo", "float32", n) for n in options.lengths}
        units = {f"{n} frames": float(n * SIZES["demo"][1]) for n in options.lengths}
        per_frame = per_unit(take_turns(runs, rounds), units, "a frame, demo size")
        runs.clear()
        for n in options.lengths:
            used = step_memory_mb("demo", "float32", options.threads, n)
            say(f"{n} frames: {used:.0f} MB, {1e3 * used / n / SIZES['demo'][1]:.1f} KB a frame")
        first, last = f"{options.lengths[0]} frames", f"{options.lengths[-1]} frames"
        figures[f"frame_time_ratio_{last.split()[0]}_vs_{first.split()[0]}"] = per_frame[last] / per_frame[first]
    figures["ddp2_scaling"] = None if options.skip_processes else scaling(max(1, rounds // 2))
    return figures
