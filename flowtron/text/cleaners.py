"""Cleaners: functions from text to text that run before it becomes tokens, found by name.

A cleaner for another language is registered with `register_cleaner` and named in the config like the ones here.
"""

import difflib
import re
from collections.abc import Callable

from unidecode import unidecode

from flowtron.errors import InputError
from flowtron.text.acronyms import expand_acronyms, written_acronyms
from flowtron.text.ipa import ipa_cleaners
from flowtron.text.korean import korean_cleaners
from flowtron.text.numbers import expand_numbers, expand_times
from flowtron.text.signs import write_signs_out

Cleaner = Callable[[str], str]

_SPACES = re.compile(r"\s+")
_LEADING_MARKS = re.compile(r"^[\s,;:]+")
_INNER_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_NUMBER_SIGN = re.compile(r"\bno\.\s*(?=[0-9])", re.IGNORECASE)
_NUMBER_SIGN_OF_ORIGINAL = re.compile(r"\bno\.", re.IGNORECASE)
_TYPED_PHONES = re.compile(r"(\{[^{}]*\})")

# In this order: 'mrs.' has to be looked for before 'mr.'.
_ABBREVIATIONS = tuple(
    (re.compile(rf"\b{short}\.", re.IGNORECASE), full)
    for short, full in {
        "mrs": "misess",
        "ms": "miss",
        "mr": "mister",
        "dr": "doctor",
        "st": "saint",
        "co": "company",
        "jr": "junior",
        "maj": "major",
        "gen": "general",
        "drs": "doctors",
        "rev": "reverend",
        "lt": "lieutenant",
        "hon": "honorable",
        "sgt": "sergeant",
        "capt": "captain",
        "esq": "esquire",
        "ltd": "limited",
        "col": "colonel",
        "ft": "fort",
    }.items()
)


def _outside_braces(clean: Cleaner, text: str, keep: Cleaner = str) -> str:
    """Cleans what is not in braces: phones typed by the user have to arrive as they are."""
    return "".join(
        keep(part) if part.startswith("{") and part.endswith("}") else clean(part) for part in _TYPED_PHONES.split(text)
    )


def collapse_spaces(text: str) -> str:
    """One space for every run of white space, line ends included."""
    return _SPACES.sub(" ", text)


def sign_cleaners(text: str) -> str:
    """Signs and abbreviations in words, for an English cleaner to come after; see `write_signs_out`.

    A voice of ours has it before `flowtron_cleaners`, which keeps what the original does with signs: symbols that
    hardly any corpus teaches. Phones typed in braces stay as they are.
    """
    return _LEADING_MARKS.sub("", _outside_braces(write_signs_out, text))


def flowtron_cleaners(text: str) -> str:
    """English as Flowtron reads it: hyphens, times, numbers, 'no. 5' and acronyms; case and accents stay.

    Unlike the original's cleaner it leaves phones typed in braces alone and reads what the original garbles; see the
    table in docs/TEXT.md.
    """
    return clean_and_trace(text)[0]


def clean_and_trace(text: str) -> tuple[str, list[str]]:
    """What `flowtron_cleaners` makes of a text, and what was written for each pair of braces in it.

    Typed phones were written as they are. An acronym stands at its first pair, and '' at those of its other letters.
    """
    written: list[str] = []

    def clean(part: str) -> str:
        part = _INNER_HYPHEN.sub(" ", part)
        part = _NUMBER_SIGN.sub("number ", part)
        part = expand_numbers(expand_times(part))
        written.extend(written_acronyms(part))
        return expand_acronyms(part)

    def keep(phones: str) -> str:
        written.append(phones)
        return phones

    return collapse_spaces(_outside_braces(clean, collapse_spaces(text), keep)), written


def flowtron_original_cleaners(text: str) -> str:
    """What the original calls flowtron_cleaners, letter by letter, for the checkpoints that were trained with it.

    A tokenizer with this cleaner also keeps the original's way with braces and possessives.
    """
    text = _INNER_HYPHEN.sub(" ", collapse_spaces(text))
    text = expand_numbers(expand_times(text, as_original=True), as_original=True)
    return expand_acronyms(_NUMBER_SIGN_OF_ORIGINAL.sub("number", text))


def english_cleaners(text: str) -> str:
    """English in lower-case ASCII, with numbers and abbreviations ('Dr.') written out."""

    def clean(part: str) -> str:
        part = expand_numbers(unidecode(part).lower())
        for abbreviation, full in _ABBREVIATIONS:
            part = abbreviation.sub(full, part)
        return part

    return collapse_spaces(_outside_braces(clean, text))


def transliteration_cleaners(text: str) -> str:
    """Any script as lower-case ASCII, nothing written out."""
    return collapse_spaces(_outside_braces(lambda part: unidecode(part).lower(), text))


def basic_cleaners(text: str) -> str:
    """Lower case and single spaces, nothing else; for symbols of one's own."""
    return collapse_spaces(_outside_braces(str.lower, text))


_BUILT_IN: dict[str, Cleaner] = {
    cleaner.__name__: cleaner
    for cleaner in (
        flowtron_cleaners,
        flowtron_original_cleaners,
        sign_cleaners,
        english_cleaners,
        transliteration_cleaners,
        basic_cleaners,
        korean_cleaners,
        ipa_cleaners,
    )
}
_registered: dict[str, Cleaner] = {}


def register_cleaner(name: str, cleaner: Cleaner) -> None:
    """Makes a cleaner available under a name, replacing an earlier one that was registered under it.

    Args:
        name: As it will stand in the config's `text_cleaners`.
        cleaner: A function at the top level of a module, so that data-loading processes can receive it.

    Raises:
        InputError: The name is one of the built-in cleaners, which checkpoints rely on.
    """
    if name in _BUILT_IN:
        raise InputError(f"The cleaner name {name!r} belongs to a built-in cleaner; register yours under another name.")
    _registered[name] = cleaner


def find_cleaner(name: str) -> Cleaner:
    """The cleaner of that name.

    Raises:
        InputError: There is none.
    """
    known = _BUILT_IN | _registered
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise InputError(
            f"The text cleaner {name!r} is unknown: use one of {', '.join(sorted(known))} (the nearest is {nearest}), "
            "or register it with flowtron.text.register_cleaner."
        )
    return known[name]
