"""The command line as a user meets it: every subcommand, right and wrong."""

import argparse
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import SMALL, save_tiny_voice, write_corpus, write_wav

import flowtron
from flowtron.cli import build_parser, main
from flowtron.commands import COMMANDS, Outcome

RATE = 22050


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return str(save_tiny_voice(tmp_path_factory.mktemp("voice") / "tiny"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Pipe(io.StringIO):
    """Standard input that is no terminal."""

    def __init__(self, content):
        super().__init__()
        self.buffer = io.BytesIO(content)


def run(*arguments):
    try:
        return main(list(arguments))
    except SystemExit as stop:  # argparse's way out
        return stop.code


# For each subcommand: arguments that name something wrong.
WRONG = {
    "say": [
        ["-f", "none.txt"],
        ["hi", "-m", "no/such/voice"],
        ["hi", "-o", "none/a.wav"],
        ["hi", "-o", "a.xyz"],
        ["..."],
        ["hi", "-o", "-", "--plot", "a.png"],
        ["hi", "-o", "-", "--json"],
        ["hi", "--times", "none/a.srt"],
    ],
    "prepare": [["ljspeech", "none", "-o", "out"], ["nonsense", ".", "-o", "out"], ["folder", "junk.bin", "-o", "out"]]
    + [["folder", ".", "-o", "out", "--sample-rate", rate] for rate in ("0", "999999999")],
    "check": [["none.txt"], ["junk.bin", "-o", "none/a.txt"], ["junk.bin", "--plot", "a.txt"]],
    "score": [["none.txt", "--frames", "a.csv"]],
    "train": [["-c", "none.json"], ["-c", "junk.bin"]],
    "serve": [
        ["no/such/voice", "--port", "0"],
        ["junk.bin", "--port", "0"],
        ["--port", "99999"],
        ["--host", "999.1.1.1"],
    ],
    "evaluate": [
        ["no/such/voice", "--sentences", "none.txt"],
        ["no", "--sentences", "a.txt", "--worst", "2"],
        ["no", "--sentences", "a.txt", "-o", "a.json", "--worst", "-1"],
        ["no", "--sentences", "a.txt", "--limit", "-1"],
    ],
    "mels": [["none.txt", "out"], ["junk.bin", "none/out"]],
    "convert": [["none.pt", "out"], ["junk.bin", "out"]],
    "export": [["none", "out.pt"], ["junk.bin", "out.pt"]],
    "info": [["none"], ["junk.bin"]],
    "completion": [["fish2"]],
}


def needed(name):
    """The fewest arguments that a subcommand parses, of things that do not exist."""
    module, parser = importlib.import_module(f"flowtron.commands.{name}"), argparse.ArgumentParser()
    module.add_options(parser)
    arguments = []
    for action in parser._actions:
        value = next(iter(action.choices or ["none/such"]))
        if action.option_strings and action.required:
            arguments += [action.option_strings[0], value]
        elif not action.option_strings and action.nargs not in ("?", "*"):
            arguments.append(value)
    return arguments


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("say", "serve", "completion")])
def test_things_that_do_not_exist_are_refused(name, capsys):
    assert run(name, *needed(name)) == 2
    error = capsys.readouterr().err
    assert error.startswith((f"flowtron {name}: ", f"usage: flowtron {name}")) and "Traceback" not in error


@pytest.mark.parametrize(("name", "arguments"), [(name, each) for name, cases in WRONG.items() for each in cases])
def test_wrong_input_is_one_sentence_and_exit_code_2(name, arguments, tmp_path, capsys):
    (tmp_path / "junk.bin").write_bytes(b"\0\xff junk" * 50)
    assert run(name, *arguments) == 2
    output, error = capsys.readouterr()
    assert (output == "" or "--json" in arguments) and "Traceback" not in error
    assert error.splitlines()[-1].startswith(f"flowtron {name}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junk.bin"]


@pytest.mark.parametrize("name", [name for name in COMMANDS if needed(name)])
def test_without_arguments_a_subcommand_tells_what_it_needs(name, capsys):
    assert run(name) == 2
    error = capsys.readouterr().err
    assert "the following arguments are required" in error and error.startswith("usage: flowtron")


def test_say_without_arguments_reads_standard_input_and_wants_words(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Pipe(b""))
    assert run("say") == 2
    assert "nothing to speak" in capsys.readouterr().err


def test_serve_without_arguments_wants_a_voice_where_none_is_bundled(capsys, monkeypatch):
    monkeypatch.setattr("flowtron.synthesizer.VOICES", Path("none"))
    assert run("serve", "--port", "0") == 2
    assert capsys.readouterr().err == "flowtron serve: no voice is bundled; name a checkpoint folder.\n"


def test_flowtron_without_arguments_names_the_subcommands(capsys):
    assert run() == 2
    assert run("--help") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_which_the_parser_takes(name, capsys):
    assert run(name, "--help") == 0
    help = capsys.readouterr().out
    assert "examples:" in help
    parser = build_parser()
    examples = importlib.import_module(f"flowtron.commands.{name}").EXAMPLES
    taken = 0
    for line in examples.splitlines():
        for part in line.split("|"):
            words = part.split("  ")[0].split(">")[0].strip()
            if words.startswith("flowtron "):
                parser.parse_args(shlex.split(words)[1:])
                taken += 1
    assert taken


@pytest.mark.parametrize("name", COMMANDS)
def test_interrupt_is_a_sentence_and_exit_code_130(name, capsys, monkeypatch):
    def interrupted(options):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(importlib.import_module(f"flowtron.commands.{name}"), "run", interrupted)
    assert run(name, *needed(name)) == 130
    error = capsys.readouterr().err
    assert error == f"flowtron {name}: interrupted.\n"


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_real_interrupt_ends_the_process_without_a_traceback(seconds):
    program = "from flowtron.cli import main\nprint('up', flush=True)\nraise SystemExit(main(['say']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == b"up\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == b"" and re.fullmatch(rb"flowtron( say)?: interrupted\.\n", error)


TELLS_WHEN_WORKERS_START = """
import sys
from contextlib import contextmanager

import flowtron.data
from flowtron.cli import main

start = flowtron.data.worker_pool


@contextmanager
def told(n_workers):
    with start(n_workers) as pool:
        print("up", flush=True)
        yield pool


if __name__ == "__main__":
    flowtron.data.worker_pool = told
    raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="a terminal's Ctrl-C is sent to a group of processes")
@pytest.mark.parametrize("command", [["prepare", "folder", "rec", "-o", "out"], ["check", "list.txt"]])
def test_workers_leave_an_interrupt_to_the_command(command, tmp_path):
    """Also when it comes while they start, which takes them longer than anything else here."""
    for number in range(200):
        write_wav(tmp_path / "rec" / f"{number}.wav", 0.3)
    rows = [f"{number}.wav|Number {number}.|ann\n" for number in range(200)]
    (tmp_path / "rec/metadata.csv").write_text("".join(rows))
    (tmp_path / "list.txt").write_text("".join(f"rec/{row}" for row in rows))
    (tmp_path / "program.py").write_text(TELLS_WHEN_WORKERS_START)
    process = subprocess.Popen(
        [sys.executable, "program.py", *command, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    assert process.stdout.readline() == b"up\n"
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and error.decode() == f"flowtron {command[0]}: interrupted.\n"


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM is POSIX's")
def test_a_terminated_command_leaves_nothing_half_written(tmp_path, voice):
    (tmp_path / "text.txt").write_text("A line that takes its time.\n" * 2000)
    process = subprocess.Popen(
        [sys.executable, "-m", "flowtron.cli", "say", "-f", "text.txt", "-m", voice, "-o", "a.wav", "-q"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while not list(tmp_path.glob(".a.wav.*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_an_interrupted_training_saves_and_says_where(tmp_path, monkeypatch, capsys):
    from flowtron import train

    write_corpus(tmp_path / "corpus")
    step = train.step

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(train, "step", interrupted)
    config = str(Path(__file__).parent.parent / "configs/demo.json")
    assert run("train", "-c", config, "-p", *SMALL) == 130
    error = capsys.readouterr().err
    assert "interrupted; saved runs/demo/checkpoints/00000001; the same command goes on." in error
    assert "Traceback" not in error and (tmp_path / "runs/demo/checkpoints/00000001/model.json").is_file()


def test_training_in_json_is_one_object_and_in_quiet_mode_nothing(tmp_path, capsys):
    write_corpus(tmp_path / "corpus")
    config = str(Path(__file__).parent.parent / "configs/demo.json")
    assert run("train", "-c", config, "--quiet", "-p", *SMALL) == 0
    assert capsys.readouterr() == ("", "")
    assert run("train", "-c", config, "--json", "-p", *SMALL, "train_config.max_iters=6") == 0
    output, error = capsys.readouterr()
    assert json.loads(output)["checkpoint"].endswith("00000006") and "resumed from" in error


def test_faults_of_the_machine_and_of_ours_are_sentences_with_exit_code_1(capsys, monkeypatch):
    module = importlib.import_module("flowtron.commands.info")
    faults = [OSError(28, "No space left on device", "a.wav"), MemoryError(), KeyError("x")]
    for fault in faults:

        def fail(options, fault=fault):
            raise fault

        monkeypatch.setattr(module, "run", fail)
        assert run("info", "x") == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("flowtron info: ")
    assert run("info", "x", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_say_writes_sound_picture_and_times(voice, tmp_path, capsys):
    arguments = ["say", "Hello there.", "-m", voice, "-o", "a.wav", "--plot", "a.png", "--times", "a.srt", "-i", "ben"]
    assert run(*arguments) == 0
    wav, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == RATE and len(wav) > 0.1 * RATE and np.sqrt(np.mean(wav**2)) > 1e-3
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and "Hello" in (tmp_path / "a.srt").read_text()
    assert re.search(r"s of speech in [\d.]+ s, alignment score [01]\.\d\d: a.wav", capsys.readouterr().out)
    assert run(*arguments, "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_say_in_json_tells_what_it_did(voice, tmp_path, capsys):
    assert run("say", "Hello there.", "-m", voice, "-s", "0.3", "--seed", "5", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    spoken = flowtron.load(voice)("Hello there.", sigma=0.3, seed=5)
    assert values["alignment_scores"] == [spoken.score]
    assert values["files"] == ["speech.wav"] and values["sample_rate"] == RATE
    assert [word["text"] for word in values["words"][0]] == ["Hello", "there"]
    assert values["seconds"] == pytest.approx(soundfile.info("speech.wav").duration)
    assert run("say", "Hi.", "-m", "none", "--json") == 2
    output, error = capsys.readouterr()
    assert json.loads(output)["error"] in error


@pytest.mark.parametrize("suffix", ["flac", "mp3", "opus"])
def test_say_writes_other_formats(suffix, voice, tmp_path):
    assert run("say", "Hello there.", "-m", voice, "-o", f"a.{suffix}", "-q") == 0
    wav, _ = soundfile.read(tmp_path / f"a.{suffix}")
    assert np.sqrt(np.mean(wav**2)) > 1e-3


def test_text_comes_from_arguments_files_and_standard_input_alike(voice, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_bytes("\ufeffHello there.\r\n".encode())
    monkeypatch.setattr(sys, "stdin", Pipe(b"Hello there.\n"))
    assert run("say", "Hello", "there.", "-m", voice, "-o", "a.wav") == 0
    assert run("say", "-f", "text.txt", "-m", voice, "-o", "b.wav") == 0
    assert run("say", "-m", voice, "-o", "c.wav") == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert run("say", "-f", "latin.txt", "-m", voice) == 2


def test_a_folder_gets_one_file_a_line(voice, tmp_path):
    (tmp_path / "text.txt").write_text("Hello there.\n\n...\nAnother one.\n")
    assert run("say", "-f", "text.txt", "-m", voice, "-o", "wavs/", "-q") == 1  # a line has nothing to speak
    assert sorted(path.name for path in (tmp_path / "wavs").iterdir()) == ["0001.wav", "0004.wav"]
    assert run("say", "Another one.", "-m", voice, "-o", "b.wav", "-q") == 0
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "wavs" / "0004.wav").read_bytes()


@pytest.mark.filterwarnings("ignore:The text has 1 characters")
def test_a_line_that_cannot_be_spoken_costs_none_of_the_others(voice, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("Hello there.\n字\nAnother one.\n", encoding="utf-8")
    assert run("say", "-f", "text.txt", "-m", voice, "-o", "wavs/", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert [Path(name).name for name in told["files"]] == ["0001.wav", "0003.wav"]
    assert len(told["notes"]) == 1 and told["notes"][0].startswith("line 2 is left out: ")
    (tmp_path / "bad.txt").write_text("字\n字字\n", encoding="utf-8")
    assert run("say", "-f", "bad.txt", "-m", voice, "-o", "bad/") == 2
    assert "line 1 is left out: " in capsys.readouterr().err
    assert run("say", "-f", "text.txt", "-m", voice, "-o", "bad/", "-i", "carl") == 2
    assert "'carl'" in capsys.readouterr().err
    assert run("say", "-f", "text.txt", "-m", voice, "-o", "none/", "--rate", "100") == 2
    assert capsys.readouterr().err.startswith("flowtron say: rate is 100") and not (tmp_path / "none").exists()


def test_standard_output_has_the_sound_of_the_stream(voice, tmp_path):
    """As long as the file's, whose sound the vocoder makes at once."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "flowtron.cli", "say", "Hello there.", "-m", voice, "-o"]
    assert run(*command[3:], "a.wav", "-q") == 0
    wav = subprocess.run([*command, "-"], env=environment, capture_output=True, check=True).stdout
    samples = np.frombuffer(wav[44:], "<i2").astype(int)
    assert wav[:4] == b"RIFF" and len(samples) == soundfile.info(tmp_path / "a.wav").frames
    streamed = np.concatenate(list(flowtron.load(voice).stream_wav("Hello there.")))
    assert np.abs(samples - 32767 * streamed).max() <= 3


def test_a_reader_that_had_enough_is_no_failure():
    process = subprocess.Popen(
        [sys.executable, "-m", "flowtron.cli", "completion", "bash"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.wait(timeout=60) == 0 and process.stderr.read() == b""


def test_without_a_standard_input_a_text_is_asked_for(voice, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert run("say", "-m", voice) == 2
    assert "no standard input" in capsys.readouterr().err


def test_what_libraries_outgrow_is_no_note(monkeypatch, capsys):
    def perform(options):
        warnings.warn_explicit("pkg_resources is deprecated as an API", UserWarning, "/usr/lib/other.py", 1)
        warnings.warn_explicit("ours is deprecated", UserWarning, flowtron.__file__, 1)
        warnings.warn_explicit("no GPU", UserWarning, "/usr/lib/other.py", 2)
        return Outcome("done")

    monkeypatch.setattr("flowtron.commands.info.run", perform)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("info", "demo") == 0
    assert capsys.readouterr().err == "note: ours is deprecated\nnote: no GPU\n"


def test_notes_about_the_text_are_sentences(voice, capsys):
    assert run("say", "Hello ☃ there.", "-m", voice, "-o", "a.wav") == 0
    error = capsys.readouterr().err
    assert error.count("☃") == 2 and "Warning" not in error  # the character, and its place
    assert run("say", "Hello ☃ there.", "-m", voice, "-o", "a.wav", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_file_does_not_steer_the_terminal(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("a\x1b[31m.wav|Hello \x1b]0;title\x07there.|ann\n")
    assert run("check", "list.txt") == 0
    assert run("info", "a\x1b[31m\x9b") == 2
    output, error = capsys.readouterr()
    assert "a\\x1b[31m.wav: no such file" in output and "a\\x1b[31m\\x9b" in error
    assert not set("\x1b\x07\x9b") & set(output + error)


def test_info_in_words_and_in_json(voice, capsys):
    assert run("info", voice) == 0
    assert "ann, ben" in capsys.readouterr().out
    assert run("info", voice, "--json") == 0
    assert json.loads(capsys.readouterr().out)["speakers"] == ["ann", "ben"]


def test_info_and_export_know_bundled_voices_and_runs_by_name(tmp_path, monkeypatch, capsys):
    for module in ("checkpoint", "synthesizer"):
        monkeypatch.setattr(f"flowtron.{module}.VOICES", tmp_path / "bundled")
    save_tiny_voice(tmp_path / "bundled" / "demo")
    save_tiny_voice(tmp_path / "run" / "checkpoints" / "00000005")
    (tmp_path / "run" / "best").write_text("00000005")
    (tmp_path / "demo").mkdir()  # as `make demo` leaves one
    for name in ("demo", "run"):
        assert run("info", name, "--json") == 0
        assert json.loads(capsys.readouterr().out)["speakers"] == ["ann", "ben"]
        assert run("export", name, f"{name}.pt", "-q") == 0 and (tmp_path / f"{name}.pt").is_file()


@pytest.mark.parametrize("json_mode", [False, True])
def test_a_pipe_that_lacks_a_character_does_not_cost_the_result(json_mode, tmp_path):
    (tmp_path / "list.txt").write_text("none.wav|Grüße.|Jörg\nnöne.wav|Grüße.|Jörg\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "flowtron.cli", "check", "list.txt", *(["--json"] if json_mode else [])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0 and done.stderr == b""
    if json_mode:
        assert [row["path"] for row in json.loads(done.stdout)["findings"]] == ["none.wav", "nöne.wav"]
    else:
        assert b"n\\xf6ne.wav" in done.stdout


def test_export_and_convert_give_the_voice_back(voice, tmp_path, capsys):
    assert run("export", voice, "a.pt") == 0
    assert run("convert", "a.pt", "back", "--json") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert json.loads(lines[-1])["folder"] == "back" and (tmp_path / "back" / "model.json").is_file()


def test_bash_completes_subcommands_options_choices_and_files(tmp_path, monkeypatch, capsys):
    """In a bash that has loaded the script, by the function that `complete` has registered for flowtron."""
    assert run("completion", "bash") == 0
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    (tmp_path / "corpus_of_mine.txt").write_text("")
    ask = """
    source completion.sh
    function complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        $(complete -p flowtron | sed 's/.*-F \\([^ ]*\\) .*/\\1/') flowtron "${COMP_WORDS[COMP_CWORD]}"
        echo "${COMPREPLY[@]}"; }
    complete_line flowtron con
    complete_line flowtron say --spe
    complete_line flowtron completion z
    complete_line flowtron check corp
    complete_line flowtron say -f corp
    """
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["convert", "--speaker", "zsh", "corpus_of_mine.txt", "corpus_of_mine.txt"]
    assert done.stderr == ""


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "vulkan"])
def test_a_device_that_is_not_there_is_refused(device, voice, capsys):
    assert run("say", "Hi.", "-m", voice, "-d", device) == 2
    assert device in capsys.readouterr().err


def test_mels_writes_a_mel_of_every_recording_once(tmp_path, capsys):
    save_tiny_voice(tmp_path / "voice")
    write_corpus(tmp_path)
    names = [line.split("|")[0] for line in (tmp_path / "train.txt").read_text().splitlines()]
    arguments = [str(tmp_path / "train.txt"), str(tmp_path / "mels"), "-m", str(tmp_path / "voice")]
    assert run("mels", *arguments, "-i", "ann", "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == len(names)
    for name in names:
        n_frames = soundfile.info(tmp_path / name).frames // 256 + 1
        assert np.load(tmp_path / "mels" / f"{Path(name).stem}.npy").shape == (80, n_frames)
    assert run("mels", *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == 0


def test_training_takes_the_device_that_was_asked_for_or_says_that_it_cannot(tmp_path, monkeypatch, capsys):
    import torch

    taken = []
    monkeypatch.setattr("flowtron.device.choose_device", lambda name: torch.device(name))
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr("flowtron.train.train", lambda config: tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    config = str(Path(__file__).parent.parent / "configs/demo.json")
    assert run("train", "-c", config, "-d", "cuda:1") == 0
    assert taken == [torch.device("cuda:1")] and os.environ["ACCELERATE_USE_CPU"] == "false"
    assert run("train", "-c", config, "-d", "cpu") == 0 and os.environ["ACCELERATE_USE_CPU"] == "true"
    assert run("train", "-c", config, "-d", "mps") == 2
    assert "only synthesis" in capsys.readouterr().err
