"""Bad input through the command line: one sentence that names it, exit code 2, nothing half-written."""

import json
import re
import resource
import sys
from pathlib import Path

import pytest
import torch

from flowtron.check import check
from flowtron.checkpoint import save_model
from flowtron.cli import main
from flowtron.config import Config, ModelConfig, parse_config
from flowtron.model import build_model
from flowtron.run import LOCK
from flowtron.text import SYMBOLS

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from make_bad_corpus import KINDS, N_GOOD, make
from training import check_readable

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


def config_file(corpus, training="good.txt", name="config.json", **train):
    values = {
        "train_config": {
            **{"output_directory": "run", "max_iters": 2, "iters_per_checkpoint": 100, "batch_size": 4},
            **{"with_tensorboard": False, "eval_sentences": ["Hi."], "n_threads": 1},
            **train,
        },
        "data_config": {"training_files": str(corpus / training), "validation_files": str(corpus / "good.txt")},
        "model_config": MODEL,
    }
    parse_config(values)
    Path(name).write_text(json.dumps(values))
    return name


def sentence(capsys):
    """The one line of standard error that a refused command leaves."""
    shown = capsys.readouterr().err.strip()
    lines = [line for line in shown.splitlines() if re.match(r"flowtron \w+: ", line)]
    assert len(lines) == 1 and "Traceback" not in shown, shown
    assert lines[0].endswith((".", "?")) and len(lines[0]) < 500
    return lines[0].partition(": ")[2]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_training_on_a_bad_corpus_is_refused_by_file_or_survives(kind, corpus, capsys):
    # Ten thousand characters take a minute backward through the text encoder, so only the gate is trained there.
    trained = {"finetune_layers": ["gate"]} if kind.name == "ten_thousand_characters" else {}
    code = main(["train", "-c", config_file(corpus, f"{kind.name}.txt", **trained)])
    if not kind.refused:
        assert code == 0
        return
    assert code == 2
    said = sentence(capsys)
    check_readable("run")  # the steps before the broken file, if there were any
    if kind.name == "unknown_speaker":
        assert f"{kind.name}.txt: 3 speakers, but model_config.n_speakers is 2" in said
    elif kind.line:
        assert f"{kind.name}.txt:{N_GOOD + 1}: " in said
        assert kind.sound is None or f"wavs/{kind.name}.wav" in said
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
    "format of a file": (["hi", "--format", "pcm"], "--format is of standard output"),
    "no folder": (["hi", "-o", "absent/a.wav"], "absent/a.wav: its folder does not exist"),
    "negative sigma": (["hi", "-s", "-1"], "sigma is -1"),
    "no rate": (["hi", "--rate", "0"], "rate is 0"),
    "rate that is no number": (["hi", "--rate", "nan"], "rate is nan"),
    "sigma that is no number": (["hi", "-s", "nan"], "sigma is nan"),
    "endless sigma": (["hi", "-s", "inf"], "sigma is inf"),
    "only characters without a symbol": (["日本"], "nothing to say, because the model has no symbol for '日' '本'"),
    "sound of another kind": (["hi", "-o", "a.mp9"], r"a\.mp9"),
    "picture of another kind": (["hi", "--plot", "picture.xyz"], r"picture\.xyz"),
    "endless seed": (["hi", "--seed", "9" * 30], "seed"),
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
        ["train", "-c", config_file(corpus, "absent.txt", "other.json")],
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


def test_a_checkpoint_that_does_not_fit_leaves_nothing_behind(corpus, capsys):
    """Files may not grow beyond 20 kB here, as on a full disk; the model alone has more."""
    chosen = config_file(corpus)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        code = main(["train", "-c", chosen])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and "cannot be written" in sentence(capsys)
    assert not [path for path in Path("run").rglob("*") if path.is_file() and path.name != LOCK]
    assert main(["train", "-c", chosen]) == 0


# What `flowtron check` calls each kind of fault; the others it does by their own name.
FOUND = {
    **{
        "empty_file": "zero-length",
        "zero_length": "zero-length",
        "rate_8khz": "sample rate",
        "pcm_24": "sample format",
    },
    **{"float": "sample format", "float_of_int16_scale": "scale", "not_a_number": "not finite", "junk": "not a sound"},
    **{"text_as_sound": "not a sound", "very_short": "too short", "missing_file": "missing", "emoji_only": "no words"},
    **{"folder_as_sound": "missing", "path_traversal": "path outside", "path_too_long": "missing"},
    **{"path_with_null": "null byte", "one_field": "fields", "five_fields": "fields", "empty_text": "fields"},
    **{"empty_speaker": "fields", "punctuation_only": "no words", "mislabelled": "text too long"},
    **{"ten_thousand_characters": "text too long", "emoji": "unknown characters", "right_to_left": "other script"},
    **{"null_bytes": "null byte", "control_characters": "control character", "latin_1": "not UTF-8"},
    **{"duplicate_line": "same recording", "unknown_speaker": "same recording"},
    **{"crlf": "CRLF", "byte_order_mark": "byte order mark", "utf_16": "byte order mark"},
}


def test_check_finds_every_kind_of_fault_at_its_line(corpus):
    result = check(corpus / "all.txt", workers=0)
    found = {(finding.line, finding.kind) for finding in result.findings}
    for number, kind in enumerate((kind for kind in KINDS if kind.line), N_GOOD + 1):
        assert (number, FOUND.get(kind.name, kind.name)) in found, kind.name
    assert not result.dropped & set(range(1, N_GOOD + 1))
    for kind in KINDS:
        if kind.name in FOUND and not kind.line:
            whole = check(corpus / f"{kind.name}.txt", workers=0)
            assert FOUND[kind.name] in {finding.kind for finding in whole.findings}


def test_what_check_keeps_can_be_trained_on(corpus, capsys):
    assert main(["check", str(corpus / "all.txt"), "-o", "clean.txt", "--plot", "check.png"]) == 0
    assert 0 < len(Path("clean.txt").read_text().splitlines()) < len(KINDS)
    values = json.loads(Path(config_file(corpus)).read_text())
    values["data_config"]["training_files"] = "clean.txt"
    values["model_config"] = {**MODEL, "n_speakers": 3}
    Path("config.json").write_text(json.dumps(values))
    assert main(["train", "-c", "config.json"]) == 0
