"""Look through a filelist and its recordings before training: what to drop, what to look at, and a cleaned list."""

import hashlib
import os
import struct
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile

from flowtron.audio import MAX_PEAK
from flowtron.data import is_file, run_jobs
from flowtron.errors import InputError
from flowtron.speech import write_atomically
from flowtron.text import SYMBOLS, Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SILENT_PEAK = 1e-3  # -60 dB of full scale
CLIPPED_RUN_SAMPLES = 4  # so many equal samples in a row at the peak are no wave
CLIPPED_SHARE = 1e-4
CLIPPED_LEVEL = 0.5
SHORTEST_SECONDS, LONGEST_SECONDS = 0.3, 20.0
LONGEST_TEXT = 1000  # characters, about a minute of speech
LONG_EDGE_SECONDS = 0.7  # of silence at either end
EDGE_DB = 42.0
OUTLIER_DEVIATIONS = 6.0  # robust standard deviations of log characters a second, within a speaker
LEAST_RATIOS = 8  # recordings of a speaker, below which nothing is an outlier
LITTLE_MINUTES = 5.0
SPOKEN_SHARE = 0.7  # of letters that have a symbol; with fewer a text is of another script

# Every kind of finding: whether its line is dropped, and the remedy.
KINDS: dict[str, tuple[bool, str]] = {
    "not UTF-8": (True, "save the filelist as UTF-8"),
    "null byte": (True, "rewrite the line"),
    "control character": (False, "removed in the cleaned list"),
    "byte order mark": (False, "removed in the cleaned list"),
    "CRLF": (False, "line ends are LF in the cleaned list"),
    "fields": (True, "write path|text|speaker"),
    "path outside": (True, "keep recordings in or below the filelist's folder"),
    "missing": (True, "correct the path"),
    "not a sound": (True, "replace the file"),
    "zero-length": (True, "replace the file"),
    "truncated": (True, "copy the file again"),
    "not finite": (True, "replace the file"),
    "scale": (True, "divide the samples by their full scale"),
    "silent": (True, "replace the file"),
    "clipped": (True, "record again, or restore"),
    "sample rate": (True, "flowtron prepare folder, or data_config.resample"),
    "stereo": (False, "mixed down when it is read"),
    "too short": (True, ""),
    "too long": (False, "cut it at a pause"),
    "silence at the ends": (False, "flowtron prepare, or data_config.trim_db"),
    "sample format": (False, "converted when it is read"),
    "no words": (True, "write what is spoken"),
    "text too long": (True, "cut recording and text at sentences"),
    "other script": (True, "use another cleaner or symbol set"),
    "unknown characters": (False, "they are left out when it is read"),
    "same recording": (True, "the first line is kept"),
    "same sound": (True, "the first line is kept"),
    "same text": (False, "more of the same teaches little"),
    "pace": (True, "text and sound may not belong together; listen"),
    "little data": (False, "fewer than 5 minutes; see docs/RECIPES.md"),
}


class Finding(NamedTuple):
    """Something about a line of the filelist (1 is the first; 0 the whole)."""

    line: int
    path: str
    kind: str
    detail: str

    @property
    def drops(self) -> bool:
        """Whether the line should go."""
        return KINDS[self.kind][0]


class Sound(NamedTuple):
    """What a recording is, as far as it could be read: findings, seconds, rate in Hz, peak, level in dB, a hash."""

    findings: list[tuple[str, str]]
    seconds: float = 0.0
    sample_rate: int = 0
    peak: float = 0.0
    level_db: float = -100.0
    hash: str = ""


@dataclass
class Line:
    """A line of the filelist that has its fields."""

    number: int
    path: Path
    name: str
    text: str
    speaker: str
    sound: Sound = field(default_factory=lambda: Sound([]))


@dataclass
class Result:
    """Of a check: all lines, those with fields, and the findings in order of lines."""

    filelist: Path
    n_lines: int
    lines: list[Line]
    findings: list[Finding]

    @property
    def dropped(self) -> set[int]:
        """Numbers of the lines to drop."""
        return {finding.line for finding in self.findings if finding.drops}

    @property
    def kept(self) -> list[Line]:
        """Lines that stay."""
        dropped = self.dropped
        return [line for line in self.lines if line.number not in dropped]


def read_lines(path: Path) -> tuple[list[Line], list[Finding], int]:
    """Read a filelist, however broken, keeping what can be read.

    Raises:
        InputError: it is missing, or holds nothing.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a filelist with lines 'path|text|speaker'.") from None
    findings: list[Finding] = []
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        findings.append(Finding(0, "", "byte order mark", "UTF-16, converted"))
        content = content.decode("utf-16", errors="replace").encode("utf-8")
    elif content[:3] == b"\xef\xbb\xbf":
        findings.append(Finding(0, "", "byte order mark", "UTF-8 with a mark"))
        content = content[3:]
    lines: list[Line] = []
    raw_lines = content.replace(b"\r\n", b"\n").split(b"\n")
    if b"\r\n" in content:
        findings.append(Finding(0, "", "CRLF", f"{content.count(bytes((13, 10)))} line ends of Windows"))
    for number, raw in enumerate(raw_lines, 1):
        if not raw.strip():
            continue
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            shown = raw.decode("utf-8", errors="replace")
            findings.append(Finding(number, shown.split("|")[0][:80], "not UTF-8", f"byte {error.start} of the line"))
            continue
        line = _fields(path, number, decoded, findings)
        if line is not None:
            lines.append(line)
    n_lines = sum(bool(raw.strip()) for raw in raw_lines)
    if not n_lines:
        raise InputError(f"{path}: the filelist has no lines; give it at least one 'path|text|speaker'.")
    return lines, findings, n_lines


def _fields(filelist: Path, number: int, decoded: str, findings: list[Finding]) -> Line | None:
    parts = [part.strip() for part in decoded.split("|")]
    name = parts[0]
    if "\0" in decoded:
        findings.append(Finding(number, name.replace("\0", "")[:80], "null byte", "in the line"))
        return None
    if len(parts) not in (2, 3) or not all(parts):
        findings.append(Finding(number, name[:80], "fields", f"{len(parts)} of them, expected path|text|speaker"))
        return None
    text = "".join(c for c in parts[1] if unicodedata.category(c) != "Cc" or c == "\t")
    if text != parts[1]:
        findings.append(Finding(number, name, "control character", f"{len(parts[1]) - len(text)} in the text"))
    if ".." in Path(name).parts or (
        Path(name).is_absolute() and not Path(name).is_relative_to(filelist.parent.resolve())
    ):
        findings.append(Finding(number, name, "path outside", "leads out of the filelist's folder"))
        return None
    found = next((p for p in (filelist.parent / name, Path(name)) if is_file(p)), None)
    if found is None:
        findings.append(Finding(number, name[:80], "missing", "no such file"))
        return None
    return Line(number, found, name, " ".join(text.split()), parts[2] if len(parts) == 3 else "0")


def declared_bytes(path: Path) -> tuple[int, int] | None:
    """Bytes of samples that a wav's header declares, and those that there are; None for other formats."""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None
        size = path.stat().st_size
        while True:
            chunk = file.read(8)
            if len(chunk) < 8:
                return None
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                return length, size - file.tell()
            file.seek(length + length % 2, os.SEEK_CUR)


def examine(path: Path, sample_rate: int) -> Sound:
    """Read a recording and say what is wrong with it."""
    try:
        with soundfile.SoundFile(path) as file:
            subtype, declared = file.subtype, file.frames
            samples = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError, OSError) as error:
        empty = path.stat().st_size == 0
        reason = "empty file" if empty else str(error).rstrip(".").split(": ")[-1]
        return Sound([("zero-length" if empty else "not a sound", reason)])
    if not len(samples):
        return Sound([("zero-length", "no samples")], sample_rate=rate)
    findings: list[tuple[str, str]] = []
    sizes = declared_bytes(path)
    # A length of 0 or of all ones is that of a stream, whose writer could not know it.
    if sizes is not None and sizes[0] > sizes[1] and sizes[0] < 0xFFFFFFFF - 64:
        findings.append(("truncated", f"{sizes[1]} of {sizes[0]} bytes"))
    elif len(samples) < declared:
        findings.append(("truncated", f"{len(samples)} of {declared} samples"))
    if rate != sample_rate:
        findings.append(("sample rate", f"{rate} Hz, expected {sample_rate}"))
    if samples.shape[1] > 1:
        findings.append(("stereo", f"{samples.shape[1]} channels"))
    if subtype not in ("PCM_16", "VORBIS", "OPUS", "MPEG_LAYER_III"):
        findings.append(("sample format", subtype.lower().replace("_", " ")))
    seconds = len(samples) / rate
    if not np.isfinite(samples).all():
        return Sound([*findings, ("not finite", f"{int((~np.isfinite(samples)).sum())} samples")], seconds, rate)
    wav = samples.mean(1)
    peak = float(np.abs(wav).max())
    digest = hashlib.blake2b(samples.tobytes(), digest_size=12).hexdigest()
    level = 10 * np.log10(max(float(np.mean(wav**2)), 1e-10))
    findings += _levels(samples, wav, peak, rate)
    if seconds < SHORTEST_SECONDS:
        findings.append(("too short", f"{seconds:.2f} s"))
    if seconds > LONGEST_SECONDS:
        findings.append(("too long", f"{seconds:.1f} s"))
    return Sound(findings, seconds, rate, peak, float(level), digest)


def _levels(samples: np.ndarray, wav: np.ndarray, peak: float, rate: int) -> Iterator[tuple[str, str]]:
    if peak > MAX_PEAK:
        yield "scale", f"samples reach {peak:g}"
    elif peak < SILENT_PEAK:
        yield "silent", f"peak {20 * np.log10(max(peak, 1e-10)):.0f} dB"
    else:
        clipped = max(_clipped_share(channel) for channel in samples.T)
        if clipped > CLIPPED_SHARE:
            yield "clipped", f"{clipped:.2%} of the samples"
        loud = np.flatnonzero(np.abs(wav) > peak * 10 ** (-EDGE_DB / 20))
        edge = max(int(loud[0]), len(wav) - 1 - int(loud[-1])) / rate
        if edge > LONG_EDGE_SECONDS:
            yield "silence at the ends", f"{edge:.1f} s"


def _clipped_share(channel: np.ndarray) -> float:
    """Share of samples in runs of equal ones at the top."""
    peak = np.abs(channel).max()
    if peak < CLIPPED_LEVEL:
        return 0.0
    at_top = np.abs(channel) >= peak * 0.9995
    edges = np.flatnonzero(np.diff(np.concatenate([[0], at_top.astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= CLIPPED_RUN_SAMPLES].sum() / len(channel))


def _examine(job: tuple[Path, int]) -> Sound:
    return examine(*job)


def check_text(text: str, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Say what is wrong with a text."""
    if not any(character.isalnum() for character in text):
        yield "no words", repr(text[:40])
        return
    if len(text) > LONGEST_TEXT:
        yield "text too long", f"{len(text)} characters"
        return
    letters = [c for c in text if c.isalpha()]
    known = set(tokenizer.symbols)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unknown = tokenizer.encode(text, p_arpabet=0.0).unknown
    except InputError:
        yield "other script", f"no symbol for {''.join(letters[:20])!r}"
        return
    if letters and sum(c in known for c in letters) < SPOKEN_SHARE * len(letters):
        yield "other script", f"no symbol for {''.join(c for c in letters if c not in known)[:20]!r}"
    elif unknown:
        yield "unknown characters", " ".join(map(repr, unknown[:8]))


def check(
    filelist: Path,
    sample_rate: int = 22050,
    tokenizer: Tokenizer | None = None,
    workers: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Result:
    """Check a filelist, its texts and its recordings.

    Args:
        filelist: lines `path|text|speaker`.
        sample_rate: in Hz that training expects.
        tokenizer: whose symbols the texts should have; the default one when None.
        workers: processes; None takes one for each processor, 0 works in this one.
        progress: called with the share that is done.

    Raises:
        InputError: the filelist is missing or empty.
    """
    tokenizer = tokenizer or Tokenizer(SYMBOLS, p_arpabet=0.0)
    lines, findings, n_lines = read_lines(filelist)
    jobs = [(line.path, sample_rate) for line in lines]
    for line, sound in zip(lines, run_jobs(_examine, jobs, workers, progress)):
        line.sound = sound
        found = [*sound.findings, *check_text(line.text, tokenizer)]
        findings += [Finding(line.number, line.name, kind, detail) for kind, detail in found]
    findings += _repeated(lines)
    bad = {finding.line for finding in findings if finding.drops}
    findings += _pace([line for line in lines if line.number not in bad])
    bad |= {finding.line for finding in findings if finding.drops}
    minutes: dict[str, float] = defaultdict(float)
    for line in lines:
        if line.number not in bad:
            minutes[line.speaker] += line.sound.seconds / 60
    findings += [
        Finding(0, "", "little data", f"speaker {name}: {total:.1f} minutes")
        for name, total in sorted(minutes.items())
        if total < LITTLE_MINUTES
    ]
    return Result(filelist, n_lines, lines, sorted(findings, key=lambda finding: finding.line))


def _repeated(lines: Sequence[Line]) -> Iterator[Finding]:
    paths: dict[Path, int] = {}
    sounds: dict[str, int] = {}
    texts: dict[tuple[str, str], int] = {}
    for line in lines:
        path, text = line.path.resolve(), (line.speaker, line.text.casefold())
        if path in paths:
            yield Finding(line.number, line.name, "same recording", f"as line {paths[path]}")
        elif line.sound.hash and line.sound.hash in sounds:
            yield Finding(line.number, line.name, "same sound", f"as line {sounds[line.sound.hash]}")
        elif text in texts:
            yield Finding(line.number, line.name, "same text", f"as line {texts[text]}")
        paths.setdefault(path, line.number)
        texts.setdefault(text, line.number)
        if line.sound.hash:
            sounds.setdefault(line.sound.hash, line.number)


def _spoken_length(text: str) -> int:
    return sum(character.isalnum() for character in text)


def _pace(lines: Sequence[Line]) -> Iterator[Finding]:
    """Lines whose characters a second are far from their speaker's median, by the median absolute deviation."""
    by_speaker: dict[str, list[Line]] = {}
    for line in lines:
        by_speaker.setdefault(line.speaker, []).append(line)
    for group in by_speaker.values():
        if len(group) < LEAST_RATIOS:
            continue
        pace = np.log([_spoken_length(line.text) / line.sound.seconds for line in group])
        middle = np.median(pace)
        # At least a tenth: where all are alike, small differences are not outliers.
        spread = max(1.4826 * float(np.median(np.abs(pace - middle))), 0.1)
        for line, value in zip(group, pace):
            # The shorter a text, the less its pace says.
            allowed = OUTLIER_DEVIATIONS * spread * (1 + 10 / _spoken_length(line.text))
            if abs(value - middle) > allowed:
                detail = f"{np.exp(value):.1f} letters a second, the speaker's median is {np.exp(middle):.1f}"
                yield Finding(line.number, line.name, "pace", detail)


def write_clean(result: Result, path: Path) -> None:
    """Write the lines that stay, in UTF-8 with LF; paths stay as they are when the folder is the same, or are made so.

    Raises:
        InputError: nothing stays, or the folder does not exist.
    """
    if not result.kept:
        raise InputError(f"{result.filelist}: every line has something wrong; correct what the table names.")
    if not path.resolve().parent.is_dir():
        raise InputError(f"{path}: its folder does not exist; create it or choose another.")
    folder = path.resolve().parent
    lines = []
    for line in result.kept:
        name = line.name
        if not (folder / name).is_file():
            name = line.path.resolve().as_posix()
        lines.append(f"{name}|{line.text}|{line.speaker}\n")
    write_atomically(path, "".join(lines))


def table(result: Result, n_examples: int = 2) -> str:
    """Readable table: the speakers, then a kind of finding a line, with how often, what to do, and examples."""
    rows = [f"{result.filelist}: {result.n_lines} lines, {len(result.kept)} stay, {len(result.dropped)} to drop"]
    rows.append(f"\n{'speaker':20s}{'lines':>8s}{'minutes':>10s}{'shortest':>10s}{'longest':>10s}{'level':>9s}")
    by_speaker: dict[str, list[Line]] = {}
    for line in result.kept:
        by_speaker.setdefault(line.speaker, []).append(line)
    for name, group in sorted(by_speaker.items()):
        seconds = [line.sound.seconds for line in group]
        level = np.mean([line.sound.level_db for line in group])
        lengths = f"{sum(seconds) / 60:10.1f}{min(seconds):9.1f}s{max(seconds):9.1f}s"
        rows.append(f"{name[:19]:20s}{len(group):8d}{lengths}{level:6.1f} dB")
    by_kind: dict[str, list[Finding]] = {}
    for finding in result.findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    if by_kind:
        rows.append(f"\n{'found':20s}{'lines':>8s}  {'':6s}")
    for kind, (drops, remedy) in KINDS.items():
        if kind not in by_kind:
            continue
        rows.append(f"{kind:20s}{len(by_kind[kind]):8d}  {'drop' if drops else 'look'}  {remedy}")
        for finding in by_kind[kind][:n_examples]:
            where = f"line {finding.line}: {finding.path}: " if finding.line else ""
            rows.append(f"{'':30s}{where}{finding.detail}")
    return "\n".join(rows)


def figure(result: Result) -> "Figure":
    """Picture of a corpus: lengths, pace, level and minutes by speaker, dropped recordings in red."""
    from matplotlib.figure import Figure

    def bins(values: list[float], least: float) -> np.ndarray:
        middle, half = (max(values) + min(values)) / 2, max(max(values) - min(values), least) / 2
        return np.linspace(middle - half, middle + half, 40)

    drawn = Figure(figsize=(12, 8), layout="constrained")
    (lengths, pace), (levels, speakers) = drawn.subplots(2, 2)
    dropped = result.dropped
    read = [line for line in result.lines if line.sound.seconds > 0]
    groups = [([x for x in read if x.number not in dropped], "C0", "stays")]
    groups.append(([x for x in read if x.number in dropped], "C3", "to drop"))
    for group, colour, label in groups:
        if not group:
            continue
        seconds = [line.sound.seconds for line in group]
        lengths.hist(seconds, bins=bins(seconds, 1.0), color=colour, label=label, alpha=0.8)
        pace.scatter(seconds, [_spoken_length(x.text) for x in group], s=4, color=colour, label=label)
        level = [line.sound.level_db for line in group]
        levels.hist(level, bins=bins(level, 1.0), color=colour, label=label, alpha=0.8)
    minutes: dict[str, float] = defaultdict(float)
    for line in result.kept:
        minutes[line.speaker] += line.sound.seconds / 60
    names = sorted(minutes, key=lambda name: -minutes[name])[:30]
    speakers.bar(range(len(names)), [minutes[name] for name in names])
    speakers.set_xticks(range(len(names)), names, rotation=90 if len(names) > 8 else 0)
    lengths.set(title="length", xlabel="seconds", ylabel="recordings")
    pace.set(title="text and sound", xlabel="seconds", ylabel="letters")
    levels.set(title="level", xlabel="dB of full scale", ylabel="recordings")
    speakers.set(title="speakers", ylabel="minutes that stay")
    if read:
        lengths.legend()
    return drawn
