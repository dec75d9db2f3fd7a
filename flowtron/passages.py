"""A text of any length as passages: what is spoken in one breath, with the silences around it.

Sentences are found by pysbd. A blank line ends a paragraph. `[pause 0.5s]` and `[pause 300ms]` are silences typed in
the text; `[pause]` is half a second.
"""

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from flowtron.errors import InputError

SENTENCE_PAUSE_SECONDS = 0.25
PARAGRAPH_PAUSE_SECONDS = 0.7
CLAUSE_PAUSE_SECONDS = 0.1  # where a sentence is too long to be spoken at once
TYPED_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
MAX_CHARACTERS = 180  # of a passage; the recordings that voices learn from are seldom longer
STRETCH = 4000  # characters whose sentences are found at once
SPOKEN_DIGIT = 5  # characters that a digit counts for

_PAUSE = re.compile(r"\[\s*pause\b([^\]]*)\]", re.IGNORECASE)
_PAUSE_LENGTH = re.compile(r"\s*(?:(\d+(?:\.\d+)?)\s*(ms|s))?\s*", re.IGNORECASE)
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_CLAUSE_END = re.compile(r"[,;:]\s|\s[-–—]+\s")
_SENTENCE_END = re.compile(r"[.?!][\"')\]”’]*\s")
_ENDS = ".?!"


@dataclass(frozen=True)
class Passage:
    """A stretch of text that is spoken at once, and the silences around it."""

    text: str
    before_seconds: float = 0.0
    after_seconds: float = 0.0


def passages(text: str) -> Iterator[Passage]:
    """Split a text, a paragraph at a time.

    Every passage ends with a mark, without which a voice trails off. The silence after the last one is what is typed
    there.

    Raises:
        InputError: there is nothing to say, or a pause is not written as one.
    """
    held: Passage | None = None
    before = pause_before = 0.0
    for paragraph in _PARAGRAPH.split(text):
        parts = list(_typed_pauses(paragraph))
        for place, part in enumerate(parts):
            if isinstance(part, float):
                if held is None:
                    before += part
                else:
                    held = replace(held, after_seconds=held.after_seconds + part)
                continue
            goes_on = any(isinstance(later, str) and later.strip() for later in parts[place + 1 :])
            for piece, pause in _sentences(part, "," if goes_on else "."):
                if held is not None:
                    # A pause typed between two passages stands in place of the natural one.
                    yield held if held.after_seconds else replace(held, after_seconds=pause_before)
                held, before = Passage(piece, before), 0.0
                pause_before = pause
        pause_before = PARAGRAPH_PAUSE_SECONDS
    if held is None:
        shown = text if len(text) <= 60 else text[:59] + "…"
        raise InputError(f"the text is {shown!r}, with nothing to speak; give it at least one word.")
    yield held


def _typed_pauses(text: str) -> Iterator[str | float]:
    """Yield stretches of text and, between them, typed pauses in seconds."""
    end = 0
    for mark in _PAUSE.finditer(text):
        yield text[end : mark.start()]
        length = _PAUSE_LENGTH.fullmatch(mark[1])
        if length is None:
            raise InputError(f"{mark[0]} is no pause; write for example [pause 0.5s] or [pause 300ms].")
        seconds = TYPED_PAUSE_SECONDS
        if length[1]:
            seconds = float(length[1]) / (1000 if length[2].lower() == "ms" else 1)
        if seconds > LONGEST_PAUSE_SECONDS:
            raise InputError(f"{mark[0]} is longer than {LONGEST_PAUSE_SECONDS:g} s; write a shorter pause.")
        yield seconds
        end = mark.end()
    yield text[end:]


def _sentences(paragraph: str, end: str) -> Iterator[tuple[str, float]]:
    """Yield the sentences of a paragraph, long ones in pieces, each with the pause after it in seconds.

    A sentence without a mark at its end gets `end`.
    """
    for sentence in _segmented(" ".join(paragraph.split())):
        *clauses, last = _pieces(sentence.strip())
        spoken = [(clause, CLAUSE_PAUSE_SECONDS) for clause in clauses] + [(last, SENTENCE_PAUSE_SECONDS)]
        yield from ((_with_end(piece, end), pause) for piece, pause in spoken if any(c.isalnum() for c in piece))


def _segmented(paragraph: str) -> Iterator[str]:
    """Yield the sentences of a paragraph, a stretch at a time, since pysbd takes quadratic time."""
    import pysbd  # slow to import, and not needed by those who hand in passages

    segmenter = pysbd.Segmenter(language="en", clean=False)
    while len(paragraph) > STRETCH:
        ends = [match.end() for match in _SENTENCE_END.finditer(paragraph, 0, STRETCH)]
        at = ends[-1] if ends else paragraph.rfind(" ", 0, STRETCH) + 1 or STRETCH
        *sentences, last = segmenter.segment(paragraph[:at]) or [paragraph[:at]]
        yield from sentences or [last]
        # The last one may go on beyond the stretch.
        paragraph = f"{last.rstrip()} {paragraph[at:]}" if sentences else paragraph[at:]
    yield from segmenter.segment(paragraph)


def _pieces(sentence: str) -> list[str]:
    """Split a sentence that is too long, at the last end of a clause, or else of a word, that keeps pieces short."""
    pieces = []
    while (reach := _reach(sentence)) < len(sentence):
        head = _outside_braces(sentence[:reach])
        ends = [match.end() for match in _CLAUSE_END.finditer(head) if match.end() > MAX_CHARACTERS // 4]
        at = ends[-1] if ends else head.rfind(" ")
        if at <= 0:
            at = reach
        pieces.append(sentence[:at].strip())
        sentence = sentence[at:].strip()
    return [*pieces, sentence]


def _reach(sentence: str) -> int:
    """How many characters from the start are short enough to be spoken at once; digits are long when spoken."""
    if len(sentence) * SPOKEN_DIGIT <= MAX_CHARACTERS:
        return len(sentence)
    lengths = [SPOKEN_DIGIT if character.isdecimal() else 1 for character in sentence]
    return max(1, bisect.bisect_right(list(accumulate(lengths)), MAX_CHARACTERS))


def spoken_length(text: str) -> int:
    """Characters of a text, where digits count as the words that they become."""
    return len(text) + (SPOKEN_DIGIT - 1) * sum(character.isdecimal() for character in text)


def typed_silence(text: str) -> float:
    """Seconds of all pauses typed in a text together.

    Raises:
        InputError: one of them is not written as a pause.
    """
    return sum(part for part in _typed_pauses(text) if isinstance(part, float))


def _outside_braces(text: str) -> str:
    """Blank out typed pronunciations, in which nothing may be split, keeping the length."""
    return re.sub(r"\{[^{}]*\}?|\[\[.*?(?:\]\]|$)", lambda found: "x" * len(found[0]), text)


def _with_end(piece: str, end: str) -> str:
    """Close a piece with a mark that means a pause."""
    piece = piece.rstrip(" -–—")
    return piece if piece.rstrip("\"')]}»”’").endswith((*_ENDS, "…")) or piece[-1] in ",;:" else piece + end
