"""A tiny corpus and config to train on in a second, and processes to train in and to kill."""

import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer

from flowtron.audio import save_wav
from flowtron.checkpoint import load_model, load_training_state
from flowtron.config import Config, parse_config

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["flowtron.train", "torch.distributed"])


def write_corpus(folder: Path, n_utterances: int = 24) -> Path:
    """Write short noises of two speakers with filelists train.txt and val.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    lines = []
    for k in range(n_utterances):
        wav = 0.1 * torch.randn(3000 + 500 * (k * 7 % 11), generator=generator)
        save_wav(folder / f"{k}.wav", wav, 22050)
        text = " ".join(WORDS[(k + j) % 9] for j in range(1 + k % 2))
        lines.append(f"{k}.wav|{text}.|{'ab'[k % 2]}")
    (folder / "train.txt").write_text("\n".join(lines))
    (folder / "val.txt").write_text("\n".join(lines[:4]))
    return folder


def tiny_config(corpus: Path, output: Path, **options: Any) -> Config:
    """A config of the smallest model; options are keys of any section."""
    values: dict[str, dict[str, Any]] = {
        "train_config": {
            **{"output_directory": str(output), "max_iters": 12, "iters_per_checkpoint": 4, "batch_size": 4},
            **{"optim_algo": "AdamW", "learning_rate": 0.01, "ema_decay": 0.9, "input_noise": 0.1},
            **{"with_tensorboard": False, "eval_sentences": [], "n_threads": 1},
        },
        "data_config": {
            **{"training_files": str(corpus / "train.txt"), "validation_files": str(corpus / "val.txt")},
            "feature_cache_path": str(corpus / "cache"),
        },
        "dist_config": {"dist_backend": "gloo"},
        "model_config": {
            **{"n_speakers": 2, "n_speaker_dim": 4, "n_text_dim": 8, "n_flows": 2, "n_mel_channels": 8},
            **{"n_attn_channels": 8, "n_hidden": 16, "n_lstm_layers": 1},
        },
    }
    sections = {key: name for name, section in reversed(Config().to_json().items()) for key in section}
    for key, value in options.items():
        values[sections[key]][key] = value
    return parse_config(values)


def _in_child(values: dict[str, Any], environment: dict[str, str], dies_at: int, errors: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    if dies_at:
        _die_at_file_operation(dies_at)
    from flowtron.train import train

    try:
        train(parse_config(values))
    except BaseException as error:
        errors.put(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None


def _die_at_file_operation(number: int) -> None:
    """Let this process kill itself at the number-th time it makes a change of the checkpoint folders visible."""
    left = [number]

    def dying(function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapped

    import shutil

    os.replace, os.rename, os.fsync = dying(os.replace), dying(os.rename), dying(os.fsync)
    shutil.rmtree = dying(shutil.rmtree)


class Run:
    """A training in a process of its own."""

    def __init__(self, config: Config, environment: dict[str, str] | None = None, dies_at: int = 0) -> None:
        self.errors = FORKSERVER.SimpleQueue()
        arguments = (config.to_json(), environment or {}, dies_at, self.errors)
        self.process = FORKSERVER.Process(target=_in_child, args=arguments, daemon=False)
        self.process.start()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def finish(self, seconds: float = 200) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "The training does not end."
        return self.process.exitcode

    def error(self) -> str:
        """What it raised."""
        return "" if self.errors.empty() else self.errors.get()


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def run_on(n_processes: int, config: Config) -> None:
    """Train on several processes as torchrun starts them."""
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": _free_port(), "WORLD_SIZE": str(n_processes)}
    runs = [Run(config, {**common, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(n_processes)]
    for run in runs:
        assert run.finish() == 0, run.error()


def last_state(output: str | Path) -> dict[str, Any]:
    """The newest training state of an output directory."""
    return torch.load(max(Path(output).glob("training/*.pt")), weights_only=True)


def check_readable(output: str | Path) -> int:
    """Load everything that a run has left where it can be seen; return how many files that are."""
    from flowtron.run import checkpoints, training_states

    models, states = checkpoints(Path(output)), training_states(Path(output))
    for path in models:
        load_model(path)
    for path in states:
        load_training_state(path)
    return len(models) + len(states)


def same(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def scale_as_float16(state: Any) -> torch.amp.GradScaler:
    """Scale the losses of a run as float16 on a GPU needs it, by far too much at first; return the scaler."""
    scaler, accelerator = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-30), state.accelerator
    accelerator.scaler, accelerator.native_amp, accelerator.state._mixed_precision = scaler, True, "fp16"
    state.optimizer = AcceleratedOptimizer(state.optimizer.optimizer, scaler=scaler)
    return scaler
