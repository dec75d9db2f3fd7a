"""Bad input through the command line: one sentence that names it, exit code 2, nothing half-written."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowtron.checkpoint import save_model
from flowtron.cli import main
from flowtron.config import Config, ModelConfig, parse_config
from flowtron.errors import exit_code
from flowtron.model import build_model
from flowtron.text import SYMBOLS

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from make_bad_corpus import KINDS, N_GOOD, make

MODEL = {"n_speakers": 2, "n_speaker_dim": 4, "n_text_dim": 8, "n_hidden": 8, "n_attn_channels": 8, "n_lstm_layers": 1}

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be spoken")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice") / "voice"
    torch.manual_seed(0)
    config = Config(model_config=ModelConfig(**MODEL))
    save_model(folder, build_model(config.model), config, symbols=SYMBOLS, speakers=["ann", "bob"])
    return folder


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config_file(corpus, training="good.txt", **train):
    values = {
        "train_config": {
            **{"output_directory": "run", "epochs": 1, "iters_per_checkpoint": 100, "batch_size": 4},
            **{"with_tensorboard": False, "eval_sentences": ["Hi."], "n_threads": 1},
            **train,
        },
        "data_config": {"training_files": str(corpus / training), "validation_files": str(corpus / "good.txt")},
        "model_config": MODEL,
    }
    parse_config(values)
    Path("config.json").write_text(json.dumps(values))
    return "config.json"


def sentence(capsys):
    """The one line of standard error that a refused command leaves."""
    shown = capsys.readouterr().err.strip()
    lines = [line for line in shown.splitlines() if line.startswith("flowtron: ")]
    assert len(lines) == 1 and "Traceback" not in shown, shown
    assert lines[0].endswith(".") and len(lines[0]) < 500
    return lines[0].removeprefix("flowtron: ")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_training_on_a_bad_corpus_is_refused_by_file_or_survives(kind, corpus, capsys):
    code = main(["train", "-c", config_file(corpus, f"{kind.name}.txt")])
    if not kind.refused:
        assert code == 0
        return
    assert code == 2
    said = sentence(capsys)
    assert not list(Path("run").glob("checkpoints/*")) and not list(Path("run").glob("training/*"))
    if kind.name == "unknown_speaker":
        assert f"{kind.name}.txt: 3 speakers, but model_config.n_speakers is 2" in said
    elif kind.sound is not None:
        assert f"wavs/{kind.name}.wav" in said
    elif kind.line:
        assert re.search(rf"{kind.name}\.txt:{N_GOOD + 1}|good_0\.wav|passwd|The text", said)
    else:
        assert f"{kind.name}.txt" in said


SAY = {
    "no text": ([""], "nothing to (speak|say)"),
    "spaces": (["  "], "nothing to (speak|say)"),
    "punctuation": (["?!"], "nothing to (speak|say)"),
    "unknown speaker": (["hi", "-i", "carl"], "'carl'.*ann, bob"),
    "speaker beyond the table": (["hi", "-i", "7"], "'7'.*ann, bob"),
    "negative speaker": (["hi", "-i", "-1"], "'-1'.*ann, bob"),
    "no such voice": (["hi", "-m", "nowhere"], "nowhere"),
    "no such vocoder": (["hi", "-v", "melodica"], "melodica: no such vocoder"),
    "no folder": (["hi", "-o", "absent/a.wav"], "absent/a.wav: its folder does not exist"),
    "folder as output": (["hi", "-o", "."], "folder"),
    "negative sigma": (["hi", "-s", "-1"], "sigma is -1"),
    "no rate": (["hi", "--rate", "0"], "rate is 0"),
    "times of another kind": (["hi", "--times", "times.xyz"], r"times\.xyz.*\.json"),
}


@pytest.mark.parametrize("case", SAY)
def test_say_refuses_in_one_sentence_and_writes_nothing(case, voice, capsys):
    arguments, message = SAY[case]
    chosen = ["say", "-m", str(voice), "-o", "speech.wav", *arguments]
    assert main(chosen) == 2
    assert re.search(message, sentence(capsys))
    assert not list(Path().iterdir())


def test_commands_refuse_what_is_not_there(corpus, voice, capsys):
    for arguments in (
        ["train", "-c", "absent.json"],
        ["train", "-c", config_file(corpus, "absent.txt")],
        ["train", "-c", config_file(corpus), "-p", "train_config.batch_sise=2"],
        ["convert", "absent.pt", "out"],
        ["export", "absent", "out.pt"],
        ["export", str(voice), "absent/out.pt"],
        ["info", "absent"],
    ):
        assert main(arguments) == 2
        assert "absent" in sentence(capsys) or "batch_sise" in arguments[-1]
    assert not Path("out").exists() and not Path("out.pt").exists()


def test_the_originals_command_line_answers_likewise(voice, capsys):
    from flowtron.inference import main as inference

    assert inference(["-f", str(voice), "-t", "", "-o", "results"]) == 2
    assert inference(["-f", "absent", "-t", "hi", "-o", "results"]) == 2
    shown = capsys.readouterr().err
    assert "nothing to" in shown and "absent" in shown and "Traceback" not in shown


def refuse(error):
    raise error


def test_what_the_system_refuses_is_told_in_one_sentence(capsys):
    assert exit_code(lambda: refuse(OSError(28, "No space left on device", "/full/a.wav"))) == 2
    assert sentence(capsys) == "/full/a.wav: No space left on device; free some space or choose another place."
    assert exit_code(lambda: refuse(PermissionError(13, "Permission denied", "a.wav"))) == 2
    assert sentence(capsys) == "a.wav: Permission denied; correct the path or its rights."
    assert exit_code(lambda: refuse(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: refuse(ZeroDivisionError()))


def run(*arguments, limit=None):
    """Run the command in a process of its own, with files no larger than a limit in bytes."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "flowtron.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=None if limit is None else limited,
        check=False,
    )


def test_a_checkpoint_that_does_not_fit_leaves_nothing_behind(corpus):
    """Files may not grow beyond 4 kB here, as on a full disk."""
    done = run("train", "-c", config_file(corpus), limit=4096)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr
    assert not [path for path in Path("run").rglob("*") if path.is_file()]
