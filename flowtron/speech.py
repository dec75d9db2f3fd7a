"""What synthesis gives: sound, mel, attention, times and score of one utterance."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from flowtron.alignment import AlignmentReport
from flowtron.audio import save_wav
from flowtron.errors import InputError
from flowtron.formats import encode
from flowtron.tensorfile import replaced_file


@dataclass(frozen=True)
class Interval:
    """A stretch of the utterance in seconds, and what is spoken in it."""

    text: str
    start_seconds: float
    end_seconds: float


@dataclass
class Speech:
    """One synthesized utterance.

    wav: (T_samples,) in [-1, 1]. mel: (n_mels, T_mel). attention: (n_flows, T_mel, T_text) in natural order of time,
    indexed like the steps of flow. z: (n_mels, T_mel) latent it was made from. words, tokens: when each is spoken.
    alignment: the score of the attention. sigma, seed: as asked. before_seconds, after_seconds: silence that belongs
    around it in its text, and is not in wav.
    """

    text: str
    speaker: str
    wav: np.ndarray
    sample_rate: int
    mel: Tensor
    attention: Tensor
    z: Tensor
    words: list[Interval]
    tokens: list[Interval]
    alignment: AlignmentReport
    sigma: float
    seed: int
    notes: list[str] = field(default_factory=list)
    before_seconds: float = 0.0
    after_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return len(self.wav) / self.sample_rate

    @property
    def score(self) -> float:
        """How well the attention walked through the text, from 0 to 1; `alignment` says what went wrong."""
        return self.alignment.score

    @property
    def times(self) -> dict[str, list[dict[str, str | float]]]:
        """Start and end in seconds of each word ("words") and token ("tokens"), as JSON values."""
        return times(self)

    def save(self, path: str | Path) -> Path:
        """Write the sound in the format of the path's suffix, a wav of 16 bits where it has none; return the path.

        Raises:
            InputError: there is no such format, or the file cannot be written.
        """
        path = Path(path)
        kind = path.suffix.lower().removeprefix(".") or "wav"
        if kind == "wav":
            save_wav(path, self.wav, self.sample_rate)
        else:
            content = encode(self.wav, self.sample_rate, kind)
            with replaced_file(path) as file:
                file.write(content)
        return path

    def plot(self, path: str | Path) -> Path:
        """Write a picture of the mel and of each step's attention, in natural order of time; return its path."""
        from flowtron.plots import speech_figure

        figure = speech_figure(self)
        figure.savefig(path, dpi=100)
        return Path(path)

    def save_times(self, path: str | Path) -> Path:
        """Write when each word and token is spoken; the suffix chooses the format: .json, .TextGrid or .srt.

        Raises:
            InputError: the suffix is another one.
        """
        return save_times(self, path)


class Timed(Protocol):
    """Anything with words and tokens in time: an utterance, or a whole chapter whose sound is already written."""

    @property
    def text(self) -> str:
        """What is spoken."""
        ...

    @property
    def words(self) -> list[Interval]:
        """When each word is spoken."""
        ...

    @property
    def tokens(self) -> list[Interval]:
        """When each token is spoken."""
        ...

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        ...


def times_writer(path: str | Path) -> Callable[[Timed], str]:
    """Return what formats times for a file of this suffix.

    Raises:
        InputError: the suffix is not .json, .TextGrid or .srt.
    """
    writers = {".json": times_json, ".textgrid": times_textgrid, ".srt": times_srt}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise InputError(f"{path}: times are written as .json, .TextGrid or .srt; choose one of these suffixes.")
    return writers[suffix]


def save_times(timed: Timed, path: str | Path) -> Path:
    """Write when each word and token is spoken; the suffix chooses the format: .json, .TextGrid or .srt.

    Raises:
        InputError: the suffix is another one.
    """
    path = Path(path)
    write_atomically(path, times_writer(path)(timed))
    return path


@dataclass
class Narration:
    """What is kept of a text whose sound goes elsewhere: when each word and token is spoken, and what to report.

    score: the lowest of its passages', as `Speech.score`.
    """

    text: str
    sample_rate: int
    seconds: float = 0.0
    words: list[Interval] = field(default_factory=list)
    tokens: list[Interval] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    score: float = 1.0

    def add(self, part: Speech) -> None:
        """Append a passage with the silences around it, rounded to samples as its sound is."""
        before, after = (
            round(s * self.sample_rate) / self.sample_rate for s in (part.before_seconds, part.after_seconds)
        )
        start = self.seconds + before
        for kept, intervals in ((self.words, part.words), (self.tokens, part.tokens)):
            kept += [Interval(i.text, i.start_seconds + start, i.end_seconds + start) for i in intervals]
        self.notes += part.notes
        self.score = min(self.score, part.score)
        self.seconds = start + part.seconds + after


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that no reader ever sees half of it."""
    with replaced_file(path) as file:
        file.write(text.encode("utf-8"))


def times(speech: Timed) -> dict[str, list[dict[str, str | float]]]:
    """Words and tokens with start and end in seconds, as JSON values."""

    def rows(intervals: list[Interval]) -> list[dict[str, str | float]]:
        return [{"text": i.text, "start": i.start_seconds, "end": i.end_seconds} for i in intervals]

    return {"words": rows(speech.words), "tokens": rows(speech.tokens)}


def times_json(speech: Timed) -> str:
    """Words and tokens with start and end in seconds, as JSON."""
    return json.dumps({"text": speech.text, **times(speech)}, indent=1, ensure_ascii=False) + "\n"


def times_textgrid(speech: Timed) -> str:
    """Words and tokens as two interval tiers of a Praat TextGrid; gaps are empty intervals, as Praat wants."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    lines += ["xmin = 0", f"xmax = {speech.seconds:.6f}", "tiers? <exists>", "size = 2", "item []:"]
    tiers: list[tuple[Literal["words", "tokens"], list[Interval]]] = [
        ("words", speech.words),
        ("tokens", speech.tokens),
    ]
    for number, (name, intervals) in enumerate(tiers, 1):
        filled: list[Interval] = []
        end = 0.0
        for interval in intervals:
            if interval.start_seconds > end:
                filled.append(Interval("", end, interval.start_seconds))
            filled.append(interval)
            end = interval.end_seconds
        if end < speech.seconds:
            filled.append(Interval("", end, speech.seconds))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {speech.seconds:.6f}"]
        lines.append(f"        intervals: size = {len(filled)}")
        for count, interval in enumerate(filled, 1):
            text = interval.text.replace('"', '""')
            lines += [
                f"        intervals [{count}]:",
                f"            xmin = {interval.start_seconds:.6f}",
                f"            xmax = {interval.end_seconds:.6f}",
                f'            text = "{text}"',
            ]
    return "\n".join(lines) + "\n"


def times_srt(speech: Timed) -> str:
    """Words as SubRip subtitles."""

    def stamp(seconds: float) -> str:
        milliseconds = round(seconds * 1000)
        hours, rest = divmod(milliseconds, 3_600_000)
        minutes, rest = divmod(rest, 60_000)
        return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d},{rest % 1000:03d}"

    blocks = [
        f"{number}\n{stamp(word.start_seconds)} --> {stamp(word.end_seconds)}\n{word.text}\n"
        for number, word in enumerate(speech.words, 1)
    ]
    return "\n".join(blocks)
