"""Acronyms as phones: words in capitals and dotted letters."""

import re

from flowtron.text.pronunciation import pronounce

LETTERS = {
    **{"A": "EY1", "B": "B IY1", "C": "S IY1", "D": "D IY1", "E": "IY1", "F": "EH1 F", "G": "JH IY1"},
    **{"H": "EY1 CH", "I": "AY1", "J": "JH EY1", "K": "K EY1", "L": "EH1 L", "M": "EH1 M", "N": "EH1 N", "O": "OW1"},
    **{"P": "P IY1", "Q": "K Y UW1", "R": "AA1 R", "S": "EH1 S", "T": "T IY1", "U": "Y UW1", "V": "V IY1"},
    **{"W": "D AH1 B AH0 L Y UW0", "X": "EH1 K S", "Y": "W AY1", "Z": "Z IY1"},
}
"""The name of each letter."""

_ACRONYM = re.compile(r"[A-Z]{2,}s?|[A-Z]\.(?:[A-Z]\.)+s?")


def _expand(match: re.Match[str]) -> str:
    acronym = match.group().replace(".", "")
    phones = pronounce(acronym)
    if phones is not None:
        return f"{{{phones}}}"
    names = [LETTERS[letter] for letter in acronym.removesuffix("s")]
    if acronym.endswith("s"):
        names[-1] += " Z"
    return " ".join(f"{{{name}}}" for name in names)


def expand_acronyms(text: str) -> str:
    """Acronyms into phones in braces: from the dictionary where they have one pronunciation, else letter by letter.

    A word in capitals counts as an acronym, so 'THE', which has two pronunciations, is spelled out. The s of a plural
    is a Z in the last letter: 'CPUs' is {S IY1} {P IY1} {Y UW1 Z}.
    """
    return _ACRONYM.sub(_expand, text)


def written_acronyms(text: str) -> list[str]:
    """What each pair of braces that `expand_acronyms` makes of a text stood for; '' for the letters after the first."""
    return [
        written
        for match in _ACRONYM.finditer(text)
        for written in (match.group(), *[""] * (_expand(match).count("{") - 1))
    ]
