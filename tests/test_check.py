"""Checking filelists: everything that can be wrong is found and named, and nothing else."""

import json

import numpy as np
import pytest
import soundfile
from tiny import tone, write_wav

from flowtron.check import KINDS, check, figure, table, write_clean
from flowtron.cli import main
from flowtron.data import read_filelist
from flowtron.errors import InputError

RATE = 22050


def corpus(root, lines):
    (root / "list.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
    return root / "list.txt"


def found(root, lines, **options):
    """Kinds by line number."""
    result = check(corpus(root, lines), workers=0, **options)
    kinds = {}
    for finding in result.findings:
        if finding.kind != "little data":
            kinds.setdefault(finding.line, set()).add(finding.kind)
    return kinds


def sound(path, samples, rate=RATE, **options):
    soundfile.write(path, samples, rate, **options)


BAD_SOUNDS = {
    "zero-length": lambda path: path.write_bytes(b""),
    "zero-length ": lambda path: sound(path, np.zeros(0)),
    "truncated": lambda path: path.write_bytes(write_wav(path).read_bytes()[:20000]),
    "not a sound": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "silent": lambda path: sound(path, np.zeros(RATE)),
    "clipped": lambda path: sound(path, np.clip(tone(1, level=3.0), -1, 1)),
    "sample rate": lambda path: write_wav(path, rate=8000),
    "stereo": lambda path: sound(path, np.stack([tone(), tone()], 1)),
    "not finite": lambda path: sound(path, np.where(np.arange(RATE) == 9, np.nan, tone()), subtype="FLOAT"),
    "scale": lambda path: sound(path, 32767 * tone(), subtype="FLOAT"),
    "too short": lambda path: write_wav(path, 0.1),
    "too long": lambda path: write_wav(path, 25),
    "silence at the ends": lambda path: sound(path, np.concatenate([tone(), np.zeros(RATE)])),
    "sample format": lambda path: write_wav(path, subtype="PCM_24"),
    "sample format ": lambda path: write_wav(path, subtype="FLOAT"),
}


@pytest.mark.parametrize("kind", BAD_SOUNDS)
def test_every_kind_of_bad_recording_is_found_alone(kind, tmp_path):
    write_wav(tmp_path / "good.wav", 1.1)
    BAD_SOUNDS[kind](tmp_path / "bad.wav")
    kinds = found(tmp_path, ["good.wav|Hello there.|ann", "bad.wav|Good morning.|ann"])
    expected = {kind.strip()} | ({"sample format"} if kind in ("not finite", "scale") else set())
    assert kinds == {2: expected}


BAD_LINES = {
    "missing": "none.wav|Good morning.|ann",
    "no words": "b.wav|?!...|ann",
    "text too long": "b.wav|" + "a word " * 1429 + "|ann",
    "unknown characters": "b.wav|Good morning \U0001f600.|ann",
    "other script": "b.wav|صباح الخير|ann",
    "null byte": "b.wav|Good\0morning.|ann",
    "control character": "b.wav|Good\x07 morning.|ann",
    "fields": "b.wav",
    "fields ": "b.wav|Good|morning.|ann|more",
    "fields  ": "b.wav||ann",
    "path outside": "../b.wav|Good morning.|ann",
    "path outside ": "/etc/hostname|Good morning.|ann",
    "path outside  ": "sub/../../b.wav|Good morning.|ann",
    "same recording": "a.wav|Something else.|ann",
    "same sound": "copy.wav|Something else.|ann",
    "same text": "b.wav|hello there.|ann",
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_every_kind_of_bad_line_is_found_alone(kind, tmp_path):
    for name, hz in (("a", 200), ("b", 300), ("copy", 200)):
        write_wav(tmp_path / f"{name}.wav", hz=hz)
    write_wav(tmp_path.parent / "b.wav")
    kinds = found(tmp_path, ["a.wav|Hello there.|ann", BAD_LINES[kind]])
    assert kinds == {2: {kind.strip()}}


@pytest.mark.parametrize(
    ("kind", "content", "line"),
    [
        ("CRLF", b"a.wav|Hello.|ann\r\nb.wav|Good day.|ann\r\n", 0),
        ("byte order mark", b"\xef\xbb\xbfa.wav|Hello.|ann\nb.wav|Good day.|ann\n", 0),
        ("byte order mark", "a.wav|Hello.|ann\nb.wav|Good day.|ann\n".encode("utf-16"), 0),
        ("not UTF-8", b"a.wav|Hello.|ann\nb.wav|caf\xe9.|ann\n", 2),
    ],
)
def test_encodings_are_found_and_the_cleaned_list_is_plain(kind, content, line, tmp_path):
    for name, hz in (("a", 200), ("b", 300)):
        write_wav(tmp_path / f"{name}.wav", hz=hz)
    (tmp_path / "list.txt").write_bytes(content)
    result = check(tmp_path / "list.txt", workers=0)
    assert [(f.line, f.kind) for f in result.findings if f.kind != "little data"] == [(line, kind)]
    write_clean(result, tmp_path / "clean.txt")
    cleaned = (tmp_path / "clean.txt").read_bytes()
    assert cleaned.startswith(b"a.wav|Hello.|ann\n") and b"\r" not in cleaned
    assert len(read_filelist(tmp_path / "clean.txt")) == (2 if line == 0 else 1)


def test_a_text_that_does_not_belong_to_its_sound_is_found_by_its_pace(tmp_path):
    lines = []
    for number in range(12):
        write_wav(tmp_path / f"{number}.wav", 1 + number / 10, hz=200 + number)
        lines.append(f"{number}.wav|{'Some words. ' * (number // 3 + 2)}{number}|ann")
    assert found(tmp_path, lines) == {}
    lines[4] = "4.wav|" + "Far too many words for so short a sound as this one is. " * 4 + "|ann"
    assert found(tmp_path, lines) == {5: {"pace"}}


def test_speakers_with_little_data_are_named(tmp_path):
    write_wav(tmp_path / "a.wav")
    result = check(corpus(tmp_path, ["a.wav|Hello.|ann"]), workers=0)
    assert [(f.kind, f.detail) for f in result.findings] == [("little data", "speaker ann: 0.0 minutes")]


def test_a_hostile_list_is_survived_and_what_stays_can_be_read(tmp_path):
    lines = ["good.wav|Hello there.|ann", "other.wav|How are you?|ben"]
    write_wav(tmp_path / "good.wav", hz=210)
    write_wav(tmp_path / "other.wav", hz=310)
    for number, (kind, make) in enumerate(BAD_SOUNDS.items()):
        make(tmp_path / f"{number}.wav")
        lines.append(f"{number}.wav|Sentence number {number}, {kind}.|ann")
    for line in BAD_LINES.values():
        lines.append(line.replace("a.wav", "good.wav").replace("copy.wav", "good.wav"))
    result = check(corpus(tmp_path, lines), workers=0)
    write_clean(result, tmp_path / "clean.txt")
    kept = read_filelist(tmp_path / "clean.txt")
    assert {"good", "other"} <= {utterance.path.stem for utterance in kept}
    assert len(kept) == len(result.kept) == result.n_lines - len(result.dropped)
    told = table(result)
    assert all(finding.kind in told for finding in result.findings)
    figure(result).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10000


def test_every_kind_can_be_found():
    tried = {kind.strip() for kind in [*BAD_SOUNDS, *BAD_LINES]}
    assert set(KINDS) == tried | {"not UTF-8", "byte order mark", "CRLF", "pace", "little data"}


def test_several_processes_find_what_one_does(tmp_path):
    lines = []
    for number in range(130):
        write_wav(tmp_path / f"{number}.wav", 0.1 if number == 77 else 0.4, hz=100 + number)
        lines.append(f"{number}.wav|Number {number} is spoken.|ann")
    list_ = corpus(tmp_path, lines)
    one, two = check(list_, workers=0), check(list_, workers=2)
    assert one.findings == two.findings and [f.line for f in one.findings if f.kind == "too short"] == [78]


def test_nothing_to_read_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        check(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match="no lines"):
        check(tmp_path / "empty.txt")


def test_the_command_writes_list_and_picture_and_can_be_strict(tmp_path, capsys):
    write_wav(tmp_path / "a.wav")
    path = str(corpus(tmp_path, ["a.wav|Hello.|ann", "none.wav|Hello again.|ann"]))
    assert main(["check", path, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["dropped"] == [2] and values["kept"] == 1
    assert (tmp_path / "list_clean.txt").read_text() == "a.wav|Hello.|ann\n"
    assert (tmp_path / "list_check.png").read_bytes().startswith(b"\x89PNG")
    assert main(["check", path, "--strict"]) == 1
    assert "1 to drop" in capsys.readouterr().out
