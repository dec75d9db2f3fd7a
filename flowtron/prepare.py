"""From a corpus as it is published to what training reads: recordings of one rate, filelists, a speaker table.

Run again with the same output folder, it does only what is missing.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowtron.audio import MARGIN_SECONDS, load_wav, save_wav, trim_silence
from flowtron.data import SpeakerTable, run_jobs
from flowtron.errors import InputError
from flowtron.speech import write_atomically

SPLITS = Path(__file__).parent / "splits"
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
PARTS = ("train", "val", "test")
SHORTEST_SECONDS = 0.1
# LibriTTS as Flowtron's authors used it (train-clean-100): their lists are of such recordings and speakers.
LIBRITTS_LONGEST_SECONDS = 10.0
LIBRITTS_LEAST_MINUTES = 5.0
VAL_SHARE, TEST_SHARE = 0.01, 0.01  # of corpora without a published split
ENCODINGS = ("utf-8-sig", "utf-16")


class Source(NamedTuple):
    """One recording of a corpus. key: unique name, of the form speaker/name or name; part: '' leaves it to chance."""

    path: Path
    text: str
    speaker: str
    key: str
    part: str


@dataclass(frozen=True)
class Settings:
    """What is done to every recording: rate in Hz, and how far below the peak, in dB, is silence (None keeps it)."""

    sample_rate: int = 22050
    trim_db: float | None = 42.0


@dataclass(frozen=True)
class Report:
    """What came of it: recordings and hours by part, minutes by speaker, and what was left out, with the reasons."""

    output: Path
    recordings: dict[str, int]
    hours: dict[str, float]
    minutes_by_speaker: dict[str, float]
    left_out: list[tuple[str, str]]


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or UTF-16 with its mark.

    Raises:
        InputError: it is missing, or in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it belongs to the corpus, so name the corpus's folder.") from None
    for encoding in ENCODINGS if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ENCODINGS[:1]:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            place = content[: error.start].count(b"\n") + 1
    raise InputError(f"{path}:{place}: not UTF-8; convert the file, for example with iconv -t UTF-8.")


def published(corpus: str) -> dict[str, str]:
    """Ids of a corpus's published split, each with its part; those of Flowtron's own validation are 'val' too."""
    parts: dict[str, str] = {}
    part = ""
    for line in (SPLITS / f"{corpus}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            part = line.strip("[]").replace("flowtron", "val")
        elif not line.startswith("#"):
            parts |= dict.fromkeys(line.split(), part)
    return parts


def one_line(text: str) -> str:
    """Text as one field of a filelist: single spaces, no separator."""
    return " ".join(text.replace("|", " ").replace("\0", " ").split())


def ljspeech(root: Path) -> Iterator[Source]:
    """LJSpeech-1.1: metadata.csv with `id|text|text in words`, and wavs/."""
    split = published("ljspeech")
    for number, line in enumerate(read_text(root / "metadata.csv").splitlines(), 1):
        fields = line.split("|")
        if len(fields) < 2:
            raise InputError(f"{root / 'metadata.csv'}:{number}: expected 'id|text|text', found {line[:60]!r}.")
        name = fields[0].strip()
        yield Source(root / "wavs" / f"{name}.wav", fields[-1], "0", name, split.get(name, "train"))


def libritts(root: Path) -> Iterator[Source]:
    """LibriTTS: SUBSET/SPEAKER/CHAPTER/*.wav, each with .normalized.txt; root is the corpus or one of its subsets."""
    split = published("libritts")
    for path in sorted(root.rglob("*.wav")):
        transcript = path.with_suffix(".normalized.txt")
        if transcript.is_file():
            yield Source(
                path, read_text(transcript), path.absolute().parts[-3], path.stem, split.get(path.stem, "train")
            )


def vctk(root: Path) -> Iterator[Source]:
    """VCTK 0.92 (wav48_silence_trimmed/*.flac, first microphone) or 0.80 (wav48/*.wav), with txt/."""
    folder = next((root / name for name in ("wav48_silence_trimmed", "wav48") if (root / name).is_dir()), None)
    if folder is None:
        raise InputError(f"{root}: neither wav48_silence_trimmed nor wav48 is in it; name the folder of VCTK.")
    for path in sorted(folder.glob("*/*")):
        name = path.stem.removesuffix("_mic1")
        transcript = root / "txt" / path.parent.name / f"{name}.txt"
        if path.suffix in (".flac", ".wav") and not name.endswith("_mic2") and transcript.is_file():
            yield Source(path, read_text(transcript), path.parent.name, name, "")


def folder(root: Path) -> Iterator[Source]:
    """Any folder of recordings, with a table of texts or a text file beside each.

    The table is metadata.csv or the only .csv, .tsv or .txt of the folder: columns path, text and perhaps speaker, in
    this order or under these names in a first line, separated by '|', tab, ';' or ','. A path may lack the suffix and
    the folder. Without a column of speakers, the folder that a recording lies in names its speaker.
    """
    tables = [path for path in sorted(root.iterdir()) if path.suffix.lower() in (".csv", ".tsv", ".txt")]
    sounds = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.suffix.lower() in SOUNDS}
    beside = [path for path in sounds.values() if path.with_suffix(".txt").is_file()]
    if beside:
        for path in beside:
            name = path.relative_to(root)
            key = name.with_suffix("").as_posix()
            yield Source(path, read_text(path.with_suffix(".txt")), _folder_speaker(name), key, "")
        return
    chosen = [path for path in tables if path.name == "metadata.csv"] or tables
    if len(chosen) != 1:
        raise InputError(
            f"{root}: {len(chosen)} tables of texts; give it one metadata.csv with lines 'path|text|speaker', or a "
            ".txt beside each recording."
        )
    yield from _from_table(root, chosen[0], sounds)


def _folder_speaker(name: Path) -> str:
    kept = [part for part in name.parts[:-1] if part.lower() not in ("wav", "wavs", "audio", "clips")]
    return kept[0] if kept else "0"


def _from_table(root: Path, table: Path, sounds: dict[Path, Path]) -> Iterator[Source]:
    lines = read_text(table).splitlines()
    first = next((line for line in lines if line.strip()), "")
    separator = next((mark for mark in ("|", "\t", ";") if mark in first), ",")
    # A bar separates without quotes around a field, as in LJSpeech.
    try:
        rows = [line.split("|") for line in lines] if separator == "|" else list(csv.reader(lines, delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{table}: no table that can be read ({error}); look for a quotation mark too many.") from None
    names = {"path": 0, "text": 1, "speaker": 2}
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    has_header = {"path", "text"} <= set(header)
    if has_header:
        names = {name: header.index(name) for name in names if name in header}
    by_stem: dict[str, list[Path]] = {}
    for name in sounds:
        by_stem.setdefault(name.stem, []).append(name)
    for number, row in enumerate(rows, 1):
        if (has_header and number == 1) or not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(names["path"], names["text"]):
            raise InputError(f"{table}:{number}: expected 'path{separator}text', found {separator.join(row)[:60]!r}.")
        named = Path(row[names["path"]].strip())
        found = [named] if named in sounds else [Path("wavs") / named] if Path("wavs") / named in sounds else []
        if not found and not named.is_absolute() and ".." not in named.parts:
            found = by_stem.get(named.stem if named.suffix.lower() in SOUNDS else named.name, [])
        if len(found) > 1:
            raise InputError(f"{table}:{number}: {named} could be {found[0]} or {found[1]}; write the whole path.")
        name = found[0] if found else named
        has_speaker = "speaker" in names and len(row) > names["speaker"] and row[names["speaker"]].strip()
        speaker = row[names["speaker"]].strip() if has_speaker else _folder_speaker(name)
        yield Source(root / name, row[names["text"]], speaker, name.with_suffix("").as_posix(), "")


CORPORA: dict[str, Callable[[Path], Iterator[Source]]] = {
    "ljspeech": ljspeech,
    "libritts": libritts,
    "vctk": vctk,
    "folder": folder,
}


def chance(key: str) -> float:
    """A number in [0, 1) that depends on the key alone: parts stay the same when recordings are added."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "big") / 2**48


def prepare_recording(job: tuple[Source, Path, Settings]) -> float | str:
    """Write one recording at its rate, trimmed, unless it is there already.

    Returns:
        Its seconds, or why it cannot be used.
    """
    import soundfile

    source, target, settings = job
    try:
        if target.is_file() and target.stat().st_mtime >= source.path.stat().st_mtime:
            return soundfile.info(target).duration
    except (OSError, soundfile.LibsndfileError):
        pass
    if any(mark in source.key for mark in "|\r\n"):
        return "a bar or a line break in its name has another meaning in a filelist; rename it"
    if _readable(source.key) != source.key:
        return "its name is not UTF-8, as a filelist is; rename it"
    if not any(character.isalnum() for character in source.text):
        return f"its text is {source.text[:40]!r}, with nothing to speak"
    try:
        wav = load_wav(source.path, settings.sample_rate, resample=True).numpy()
        if settings.trim_db is not None:
            wav = trim_silence(wav, settings.trim_db, round(MARGIN_SECONDS * settings.sample_rate))
        if len(wav) < SHORTEST_SECONDS * settings.sample_rate or np.abs(wav).max() < 1e-4:
            return "no sound in it"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_wav(target, wav, settings.sample_rate)
    except InputError as error:
        return str(error)
    return len(wav) / settings.sample_rate


def prepare(
    corpus: str,
    root: Path,
    output: Path,
    settings: Settings = Settings(),
    workers: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Report:
    """Prepare a corpus: recordings in OUTPUT/wavs, train.txt, val.txt, test.txt, speakers.json, left_out.txt.

    Args:
        corpus: 'ljspeech', 'libritts', 'vctk' or 'folder'.
        root: where it lies.
        output: folder to write; what an earlier run with the same settings made is kept.
        settings: of the recordings.
        workers: processes; None takes one for each processor, 0 works in this one.
        progress: called with the share that is done.

    Raises:
        InputError: the corpus is not what it is said to be, or nothing of it can be used.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; name the folder of the corpus.")
    sources = list(CORPORA[corpus](root))
    if not sources:
        raise InputError(f"{root}: no recordings with texts, as {corpus} has them, are in it; name another folder.")
    seen: set[str] = set()
    for source in sources:
        if source.key in seen:
            raise InputError(f"{root}: {source.key} is there twice; give each recording one line and one name.")
        if not _is_inside(root, source.path):
            raise InputError(f"{root}: {source.path} lies outside of the corpus; name recordings inside of it.")
        seen.add(source.key)
    _keep_or_redo(output, settings)
    targets = [output / "wavs" / f"{source.key}.wav" for source in sources]
    results = run_jobs(prepare_recording, [(s, t, settings) for s, t in zip(sources, targets)], workers, progress)
    used = [(s, t, r) for s, t, r in zip(sources, targets, results) if isinstance(r, float)]
    left_out = [(_readable(s.key), r) for s, r in zip(sources, results) if isinstance(r, str)]
    if corpus == "libritts":
        used, rest = _libritts_selection(used)
        left_out += rest
    if not used:
        raise InputError(f"{root}: none of {len(sources)} recordings can be used; the first: {left_out[0][1]}")
    return _write(output, used, left_out)


def _readable(name: str) -> str:
    """A name in one line, with a mark for what is no Unicode in it."""
    return " ".join(name.encode("utf-8", "replace").decode().splitlines())


def _is_inside(root: Path, path: Path) -> bool:
    return ".." not in path.relative_to(root).parts if path.is_relative_to(root) else False


def _keep_or_redo(output: Path, settings: Settings) -> None:
    """Make the output folder; recordings of other settings in it are made anew."""
    (output / "wavs").mkdir(parents=True, exist_ok=True)
    noted = output / "settings.json"
    wanted = json.dumps(asdict(settings)) + "\n"
    if noted.is_file() and noted.read_text(encoding="utf-8") != wanted:
        for path in (output / "wavs").rglob("*.wav"):
            path.unlink()
    write_atomically(noted, wanted)


Used = tuple[Source, Path, float]


def _libritts_selection(used: list[Used]) -> tuple[list[Used], list[tuple[str, str]]]:
    """Recordings and speakers as in the published lists."""
    kept, left_out = [], []
    minutes: dict[str, float] = {}
    for source, target, seconds in used:
        if seconds >= LIBRITTS_LONGEST_SECONDS and source.part == "train":
            left_out.append((source.key, f"{seconds:.1f} s, longer than {LIBRITTS_LONGEST_SECONDS:g} s"))
        else:
            kept.append((source, target, seconds))
            minutes[source.speaker] = minutes.get(source.speaker, 0.0) + seconds / 60
    few = {speaker for speaker, total in minutes.items() if total < LIBRITTS_LEAST_MINUTES}
    if len(few) == len(minutes):
        # A small extract is taken whole, rather than refused.
        return kept, left_out
    left_out += [(s.key, f"speaker {s.speaker} has less than 5 minutes") for s, _, _ in kept if s.speaker in few]
    return [each for each in kept if each[0].speaker not in few], left_out


def _write(output: Path, used: list[Used], left_out: list[tuple[str, str]]) -> Report:
    parts: list[str] = []
    for source, _, _ in used:
        draw = chance(source.key)
        by_chance = "test" if draw < TEST_SHARE else "val" if draw < TEST_SHARE + VAL_SHARE else "train"
        parts.append(source.part or by_chance)
    for wanted in ("val", "test") if len(used) > 2 else ():
        if wanted not in parts:
            # The likeliest recording that is left, so that a small corpus has something to listen to.
            rest = [k for k, part in enumerate(parts) if part == "train"]
            if len(rest) > 1:
                parts[min(rest, key=lambda k: chance(used[k][0].key))] = wanted
    trained = {source.speaker for (source, _, _), part in zip(used, parts) if part == "train"}
    # A model knows only speakers that it was trained on.
    parts = [part if source.speaker in trained else "train" for (source, _, _), part in zip(used, parts)]
    counts, hours = {}, {}
    minutes: dict[str, float] = {}
    for name in PARTS:
        rows = [(s, t, seconds) for (s, t, seconds), part in zip(used, parts) if part == name]
        lines = [f"{t.relative_to(output).as_posix()}|{one_line(s.text)}|{one_line(s.speaker)}" for s, t, _ in rows]
        write_atomically(output / f"{name}.txt", "".join(f"{line}\n" for line in lines))
        counts[name], hours[name] = len(rows), sum(seconds for *_, seconds in rows) / 3600
        for source, _, seconds in rows:
            minutes[source.speaker] = minutes.get(source.speaker, 0.0) + seconds / 60
    table = {
        name: {"row": k, "minutes": round(minutes[name], 2)} for k, name in enumerate(SpeakerTable(list(minutes)).names)
    }
    write_atomically(output / "speakers.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    write_atomically(output / "left_out.txt", "".join(f"{key}: {reason}\n" for key, reason in left_out))
    return Report(output, counts, hours, minutes, left_out)
