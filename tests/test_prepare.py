"""Preparing corpora: tiny ones in each published layout."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import tone, write_wav

from flowtron.data import read_filelist
from flowtron.errors import InputError
from flowtron.prepare import Settings, chance, prepare, published


def parts(output):
    names = {}
    for part in ("train", "val", "test"):
        if (output / f"{part}.txt").read_text():
            names[part] = [(u.path.stem, u.text, u.speaker) for u in read_filelist(output / f"{part}.txt")]
    return names


def run(corpus, root, output, **options):
    return prepare(corpus, root, output, workers=0, **options)


@pytest.fixture
def ljspeech(tmp_path):
    root = tmp_path / "LJSpeech-1.1"
    test, val, train = "LJ001-0015", "LJ022-0023", "LJ001-0001"
    rows = []
    for name in (test, val, "LJ045-0227", train, "LJ001-0002"):
        write_wav(root / "wavs" / f"{name}.wav", hz=200 + len(rows) * 10)
        rows.append(f'{name}|He said "5".|He said, "five", number {len(rows)}.')
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def test_published_splits_are_whole_and_apart():
    split = published("ljspeech")
    assert list(split.values()).count("test") == 500 and list(split.values()).count("val") == 158
    assert list(published("libritts").values()) == ["val"] * 180
    assert all(len(name) == 10 and name.startswith("LJ0") for name in split)


def test_ljspeech_has_the_published_split_and_the_text_in_words(ljspeech, tmp_path):
    report = run("ljspeech", ljspeech, tmp_path / "out")
    names = parts(tmp_path / "out")
    assert [name for name, *_ in names["train"]] == ["LJ001-0001", "LJ001-0002"]
    assert [name for name, *_ in names["val"]] == ["LJ022-0023", "LJ045-0227"]
    assert names["test"] == [("LJ001-0015", 'He said, "five", number 0.', "0")]
    assert report.recordings == {"train": 2, "val": 2, "test": 1} and not report.left_out


def test_libritts_speakers_come_from_folders_and_long_recordings_are_left_out(tmp_path):
    root = tmp_path / "LibriTTS" / "train-clean-100"
    for speaker, name, seconds in (("7367", "7367_86737_000132_000020", 1), ("7367", "7367_1_000001_000000", 1),
                                   ("40", "40_222_000001_000000", 1), ("40", "40_222_000002_000000", 11)):  # fmt: skip
        path = write_wav(root / speaker / name.split("_")[1] / f"{name}.wav", seconds, rate=24000)
        path.with_suffix(".normalized.txt").write_text(f"This is {name}.")
        path.with_suffix(".original.txt").write_text("unused")
    report = run("libritts", tmp_path / "LibriTTS", tmp_path / "out")
    names = parts(tmp_path / "out")
    assert [(name, speaker) for name, _, speaker in names["val"]] == [("7367_86737_000132_000020", "7367")]
    assert {speaker for _, _, speaker in names["train"]} == {"40", "7367"}
    assert [key for key, _ in report.left_out] == ["40_222_000002_000000"]
    assert soundfile.info(tmp_path / "out/wavs/40_222_000001_000000.wav").samplerate == 22050


@pytest.mark.parametrize(("folder", "suffix"), [("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav")])
def test_vctk_takes_the_first_microphone_and_leaves_out_what_has_no_text(folder, suffix, tmp_path):
    root = tmp_path / "VCTK"
    for speaker in ("p225", "p226"):
        for number in range(1, 5):
            name = f"{speaker}_{number:03d}"
            write_wav(root / folder / speaker / f"{name}{suffix}", rate=48000, hz=100 + number)
            if suffix != ".wav":
                write_wav(root / folder / speaker / f"{name}_mic2.flac", rate=48000)
            (root / "txt" / speaker).mkdir(parents=True, exist_ok=True)
            (root / "txt" / speaker / f"{name}.txt").write_text(f"Please call {name}.\n")
    write_wav(root / folder / "p315" / f"p315_001{suffix}", rate=48000)
    report = run("vctk", root, tmp_path / "out")
    names = parts(tmp_path / "out")
    assert sum(map(len, names.values())) == 8 and set(names) == {"train", "val", "test"}
    assert set(report.minutes_by_speaker) == {"p225", "p226"}
    table = json.loads((tmp_path / "out/speakers.json").read_text())
    assert [table[name]["row"] for name in ("p225", "p226")] == [0, 1]


TABLES = {
    "bars": ("metadata.csv", "a|One, two.|ann\nb|Three.|ben\nsub/c|Four.|ann\n"),
    "commas": ("metadata.csv", 'a.wav,"One, two.",ann\nb.wav,Three.,ben\nc.wav,Four.,ann\n'),
    "names of columns": ("list.tsv", "speaker\ttext\tpath\nann\tOne, two.\ta\nben\tThree.\tb\nann\tFour.\tc\n"),
    "mark and CRLF": ("metadata.csv", "\ufeffa|One, two.|ann\r\nb|Three.|ben\r\nc|Four.|ann\r\n"),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_folder_with_a_table(table, tmp_path):
    root = tmp_path / "mine"
    for name in ("wavs/a", "b", "sub/c"):
        write_wav(root / f"{name}.wav", hz=150 + len(name))
    name, content = TABLES[table]
    (root / name).write_bytes(content.encode())
    run("folder", root, tmp_path / "out")
    everything = sorted(row for rows in parts(tmp_path / "out").values() for row in rows)
    assert everything == [("a", "One, two.", "ann"), ("b", "Three.", "ben"), ("c", "Four.", "ann")]


def test_a_folder_with_texts_beside_and_speakers_by_folder(tmp_path):
    for speaker in ("ann", "ben"):
        for name in ("1", "2"):
            path = write_wav(tmp_path / "mine" / speaker / f"{name}.flac")
            path.with_suffix(".txt").write_text(f"Number {name}\nof {speaker} | bar.")
    run("folder", tmp_path / "mine", tmp_path / "out")
    everything = sorted(row for rows in parts(tmp_path / "out").values() for row in rows)
    assert everything[0] == ("1", "Number 1 of ann bar.", "ann") and len(everything) == 4
    assert (tmp_path / "out/wavs/ben/2.wav").is_file()


def test_recordings_are_resampled_trimmed_and_made_mono(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    wav = np.concatenate([np.zeros(44100), tone(1, rate=44100), np.zeros(44100)])
    soundfile.write(root / "a.wav", np.stack([wav, wav], 1), 44100, subtype="PCM_24")
    (root / "a.txt").write_text("Hello.")
    run("folder", root, tmp_path / "out")
    made = soundfile.info(tmp_path / "out/wavs/a.wav")
    assert (made.samplerate, made.channels, made.subtype) == (22050, 1, "PCM_16") and 0.9 < made.duration < 1.2
    run("folder", root, tmp_path / "out", settings=Settings(16000, None))
    made = soundfile.info(tmp_path / "out/wavs/a.wav")
    assert made.samplerate == 16000 and made.duration == pytest.approx(3)


def test_what_cannot_be_used_is_listed_with_the_reason(tmp_path):
    root = tmp_path / "mine"
    for name in ("good", "wordless"):
        write_wav(root / f"{name}.wav")
    (root / "junk.wav").write_bytes(b"junk" * 100)
    soundfile.write(root / "silent.wav", np.zeros(22050), 22050)
    (root / "metadata.csv").write_text("good|Hi.\nwordless|...\njunk|Hi.\nsilent|Hi.\nmissing|Hi.\n")
    report = run("folder", root, tmp_path / "out")
    assert [key for key, _ in report.left_out] == ["wordless", "junk", "silent", "missing"]
    assert (tmp_path / "out/left_out.txt").read_text().count("\n") == 4
    assert report.recordings["train"] == 1


def test_run_again_it_does_only_what_is_missing_and_gives_the_same(ljspeech, tmp_path):
    output = tmp_path / "out"
    run("ljspeech", ljspeech, output)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.rglob("*.wav")}
    lists = (output / "train.txt").read_text()
    os.unlink(output / "wavs/LJ001-0001.wav")
    (output / "wavs/LJ001-0002.wav").write_bytes(b"half a file")
    run("ljspeech", ljspeech, output)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.rglob("*.wav")}
    assert {path for path in before if before[path] != after[path]} == {
        output / "wavs/LJ001-0001.wav",
        output / "wavs/LJ001-0002.wav",
    }
    assert all(before[path][1] == after[path][1] for path in before) and (output / "train.txt").read_text() == lists


def test_several_processes_give_what_one_does(tmp_path):
    root = tmp_path / "mine"
    for number in range(20):
        path = write_wav(root / f"{number:02d}.wav", 0.3, hz=100 + number)
        path.with_suffix(".txt").write_text(f"Number {number}.")
    run("folder", root, tmp_path / "one")
    prepare("folder", root, tmp_path / "two", workers=2)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_parts_do_not_change_when_recordings_are_added():
    draws = [chance(f"recording {number}") for number in range(2000)]
    assert draws == [chance(f"recording {number}") for number in range(2000)]
    assert 0.4 < np.mean(draws) < 0.6 and 5 < sum(draw < 0.01 for draw in draws) < 40


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "0 tables"),
        ({"a.csv": "x|y\n", "b.csv": "x|y\n"}, "2 tables"),
        ({"metadata.csv": "only\n"}, "metadata.csv:1"),
        ({"metadata.csv": "a|Hi.\na|Ho.\n"}, "twice"),
        ({"metadata.csv": "../a|Hi.\n"}, "outside"),
        ({"metadata.csv": "/etc/passwd|Hi.\n"}, "outside"),
        ({"metadata.csv": "none|Hi.\n"}, "none of 1 recordings"),
        ({"metadata.csv": b"a|caf\xe9\n"}, "not UTF-8"),
        ({"metadata.csv": f'a,"{"x" * 200000}\n'}, "quotation mark"),
    ],
)
def test_a_folder_that_is_no_corpus_is_refused_in_a_sentence(content, expected, tmp_path):
    root = tmp_path / "mine"
    write_wav(tmp_path / "a.wav")
    write_wav(root / "a.wav")
    for name, text in content.items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=expected):
        run("folder", root, tmp_path / "out")


@pytest.mark.parametrize("corpus", ["ljspeech", "libritts", "vctk", "folder"])
def test_another_folder_is_refused(corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(InputError):
            run(corpus, root, tmp_path / "out")


def test_libritts_may_be_named_from_within(tmp_path, monkeypatch):
    for number in range(3):
        path = write_wav(tmp_path / f"lib/84/121/84_121_{number}.wav", hz=200 + number)
        path.with_suffix(".normalized.txt").write_text(f"Hello {number}.")
    monkeypatch.chdir(tmp_path / "lib/84/121")
    assert list(run("libritts", Path("."), tmp_path / "out").minutes_by_speaker) == ["84"]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere no file can have such a name")
@pytest.mark.parametrize(("name", "shown"), [("a|b", "a|b"), ("a\nb", "a b"), (os.fsdecode(b"a\xe9b"), "a?b")])
def test_a_name_that_a_filelist_cannot_hold_is_left_out(name, shown, tmp_path):
    for stem in ("good", name):
        # libsndfile cannot write under such a name.
        path = write_wav(tmp_path / "mine" / "new.wav").rename(tmp_path / "mine" / f"{stem}.wav")
        path.with_suffix(".txt").write_text("Hello there.")
    report = run("folder", tmp_path / "mine", tmp_path / "out")
    assert [key for key, _ in report.left_out] == [shown] and parts(tmp_path / "out")["train"][0][0] == "good"
    assert (tmp_path / "out/left_out.txt").read_text().count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="modes are those of Unix")
def test_lists_can_be_read_by_all_who_could_read_any_new_file(tmp_path):
    path = write_wav(tmp_path / "mine/a.wav")
    path.with_suffix(".txt").write_text("Hello there.")
    run("folder", tmp_path / "mine", tmp_path / "out")
    usual = path.with_suffix(".txt").stat().st_mode
    assert all((tmp_path / "out" / name).stat().st_mode == usual for name in ("train.txt", "speakers.json"))
