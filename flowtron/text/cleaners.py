"""Cleaners: functions from text to text that run before it becomes tokens, found by name.

A cleaner for another language is registered with `register_cleaner` and named in the config like the ones here.
"""

import difflib
import re
from collections.abc import Callable

from unidecode import unidecode

from flowtron.errors import InputError
from flowtron.text.acronyms import expand_acronyms
from flowtron.text.ipa import ipa_cleaners
from flowtron.text.korean import korean_cleaners
from flowtron.text.numbers import expand_numbers, expand_times

Cleaner = Callable[[str], str]

_SPACES = re.compile(r"\s+")
_INNER_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_NUMBER_SIGN = re.compile(r"\bno\.\s*(?=[0-9])", re.IGNORECASE)
_NUMBER_SIGN_OF_ORIGINAL = re.compile(r"\bno\.", re.IGNORECASE)
# What word processors and web pages write for ' " and -.
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-"})
_DEGREES = {"F": " degrees fahrenheit", "C": " degrees celsius", None: " degrees"}
_CLOCK = r"(?<![0-9:])([01]?[0-9]|2[0-3]):"
# In this order; what is left of them all is read by the cleaner that comes after.
_SIGNS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<=[^\s,])(?:\s*—\s*|\s+–\s+)(?=\w)"), ", "),
    (re.compile(r"[‘’“”–—]"), lambda found: found[0].translate(_PLAIN)),
    (re.compile(r"(?<![\w.,$£€-])([0-9]{1,4})-([0-9]{1,4})(?![\w-]|[.,][0-9])"), lambda found: _range(found)),
    (re.compile(r"(?:(?<=\s)|^)-(?=[0-9])"), "minus "),
    (re.compile(r"(?<=[0-9])\s?%"), " percent"),
    (re.compile(r"\s*&\s*"), " and "),
    (re.compile(r"€\s?([0-9][0-9.,]*[0-9]|[0-9])"), r"\1 euros"),
    (re.compile(r"(?<=[0-9])\s?°(?:\s?([FC])\b)?"), lambda found: _DEGREES[found[1]]),
    (re.compile(r"#(?=[0-9])"), "number "),
    (re.compile(r"(?<=\w)\s*\+\s*(?=\w)"), " plus "),
    (re.compile(r"(?<=\w)\s*=\s*(?=\w)"), " equals "),
    (re.compile(r"(?<=\w)\s*@\s*(?=\w)"), " at "),
    (re.compile(r"(?<![\w./-])1/2(?![\w/])|½"), "one half"),
    (re.compile(r"(?<![\w./-])1/3(?![\w/])"), "one third"),
    (re.compile(r"(?<![\w./-])2/3(?![\w/])"), "two thirds"),
    (re.compile(r"(?<![\w./-])1/4(?![\w/])|¼"), "one quarter"),
    (re.compile(r"(?<![\w./-])3/4(?![\w/])|¾"), "three quarters"),
    (re.compile(_CLOCK + r"00\s*(?=[ap]m\b)", re.IGNORECASE), r"\1 "),
    (re.compile(_CLOCK + r"00(?![0-9:])"), r"\1 o'clock"),
    (re.compile(_CLOCK + r"0([1-9])(?![0-9:])"), r"\1 oh \2"),
    (re.compile(r"\b[0-9]+(?:ST|ND|RD|TH)\b"), lambda found: found[0].lower()),
    # A list of numbers, where commas do not part thousands.
    (re.compile(r"(?<![0-9,])[0-9]+(?:,[0-9]+)+(?![0-9])"), lambda found: _listed(found[0])),
    (re.compile(r"(?<=[A-Za-z])(?=[0-9])"), " "),
)
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


def _outside_braces(clean: Cleaner, text: str) -> str:
    """Cleans what is not in braces: phones typed by the user have to arrive as they are."""
    return "".join(
        part if part.startswith("{") and part.endswith("}") else clean(part) for part in _TYPED_PHONES.split(text)
    )


def collapse_spaces(text: str) -> str:
    """One space for every run of white space, line ends included."""
    return _SPACES.sub(" ", text)


def _range(found: re.Match[str]) -> str:
    """'3 to 5' of '3-5'; what does not rise, or looks like a telephone number, is left."""
    first, last = found.groups()
    rises = int(first) < int(last) and (len(first), len(last)) != (3, 4)
    return f"{first} to {last}" if rises else found[0]


def _listed(numbers: str) -> str:
    """'1, 2, 3' of '1,2,3'; what has groups of three is one number and left."""
    return numbers if re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+", numbers) else numbers.replace(",", ", ")


def sign_cleaners(text: str) -> str:
    """Signs in words, for an English cleaner to come after: quotes, dashes, % & € ° # + = @, ranges, minus, o'clock.

    A voice of ours has it before `flowtron_cleaners`, which keeps what the original does with signs: symbols that
    hardly any corpus teaches. Phones typed in braces stay as they are.
    """

    def clean(part: str) -> str:
        for sign, words in _SIGNS:
            part = sign.sub(words, part)
        return part

    return _outside_braces(clean, text)


def flowtron_cleaners(text: str) -> str:
    """English as Flowtron reads it: hyphens, times, numbers, 'no. 5' and acronyms; case and accents stay.

    Unlike the original's cleaner it leaves phones typed in braces alone and reads what the original garbles; see the
    table in docs/TEXT.md.
    """

    def clean(part: str) -> str:
        part = _INNER_HYPHEN.sub(" ", part)
        part = _NUMBER_SIGN.sub("number ", part)
        return expand_acronyms(expand_numbers(expand_times(part)))

    return collapse_spaces(_outside_braces(clean, collapse_spaces(text)))


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
