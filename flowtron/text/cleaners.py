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

Cleaner = Callable[[str], str]

_SPACES = re.compile(r"\s+")
_INNER_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_NUMBER_SIGN = re.compile(r"\bno\.\s*(?=[0-9])", re.IGNORECASE)
_NUMBER_SIGN_OF_ORIGINAL = re.compile(r"\bno\.", re.IGNORECASE)
# What word processors and web pages write for ' " and -.
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-"})
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "tn": "trillion"}
_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
_MONEY = re.compile(
    r"([$£€])\s?(?=\.?[0-9])([0-9]*(?:,[0-9]{3})*)(?:\.([0-9]+))?(?![0-9.,]*[0-9])"
    rf"(?:({'|'.join(_SCALES)})\b|\s(hundred|thousand|million|billion|trillion)\b)?(?:\s(?:dollars|pounds|euros)\b)?",
    re.IGNORECASE,
)
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}
_FRACTION = re.compile(
    rf"(?<![\w./-])(?:([0-9]+)(?: (?=[0-9])| ?(?=[{''.join(_VULGAR)}])))?"
    rf"([{''.join(_VULGAR)}]|1/2|[12]/3|[13]/4|[1357]/8)(?![\w/])"
)
_NUMERATORS = {"1": "one", "2": "two", "3": "three", "5": "five", "7": "seven"}
_PARTS = {"2": "half", "3": "third", "4": "quarter", "8": "eighth"}
_DEGREES = {"F": " degrees fahrenheit", "C": " degrees celsius", None: " degrees"}
_CLOCK = r"(?<![0-9:])([01]?[0-9]|2[0-3]):"
# In this order; what is left of them all is read by the cleaner that comes after.
_SIGNS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<=[^\s,])(?:\s*—\s*|\s+–\s+)(?=\w)"), ", "),
    (re.compile(r"[‘’“”–—]"), lambda found: found[0].translate(_PLAIN)),
    (re.compile(r"(?<![\w.,$£€-])([0-9]{1,4})-([0-9]{1,4})(?![\w-]|[.,][0-9])"), lambda found: _range(found)),
    (re.compile(r"([$£€])[-−](?=[0-9.])"), r"-\1"),
    (re.compile(r"(?:(?<=\s)|^)-(?=[$£€]?\.?[0-9])"), "minus "),
    (re.compile(r"([$£€])([0-9][0-9.,]*)-[$£€]?(?=[0-9])"), r"\2 to \1"),
    (re.compile(r"(\S?)\s*−\s*(?=[0-9$£€.])"), lambda found: f"{found[1]} minus " if found[1] else "minus "),
    (re.compile(r"(?<![\w.,$£€])([0-9]+(?:[.,][0-9]+)*)\s?([$£€])(?!\s?[0-9])"), r"\2\1"),
    (_MONEY, lambda found: _money(found)),
    (re.compile(r"(?<![\w.])\.(?=[0-9])"), "point "),
    (re.compile(r"(?<=[0-9])\s?%"), " percent"),
    (re.compile(r"\s*&\s*"), " and "),
    (re.compile(r"€\s?([0-9][0-9.,]*[0-9]|[0-9])"), r"\1 euros"),
    (re.compile(r"(?<=[0-9])\s?°(?:\s?([FC])\b)?"), lambda found: _DEGREES[found[1]]),
    (re.compile(r"#(?=[0-9])"), "number "),
    (re.compile(r"(?<=\w)\s*\+\s*(?=\w)"), " plus "),
    (re.compile(r"(?<=\w)\s*=\s*(?=\w)"), " equals "),
    (re.compile(r"(?<=\w)\s*@\s*(?=\w)"), " at "),
    (_FRACTION, lambda found: _fraction(found)),
    (re.compile(r"(?<=[0-9])\s?([APap])\.\s?[Mm]\.(?=\s+[A-Z]|\s*$)"), r" \1m."),
    (re.compile(r"(?<=[0-9])\s?([APap])\.\s?[Mm]\."), r" \1m"),
    (
        re.compile(_CLOCK + r"([0-5][0-9]):([0-5][0-9])(?![0-9:])"),
        lambda found: " ".join(part.replace("0", "oh ", 1) if part[0] == "0" else part for part in found.groups()),
    ),
    (re.compile(_CLOCK + r"00\s*(?=[ap]m\b)", re.IGNORECASE), r"\1 "),
    (re.compile(_CLOCK + r"00(?![0-9:])"), r"\1 o'clock"),
    (re.compile(_CLOCK + r"0([1-9])(?![0-9:])"), r"\1 oh \2"),
    (re.compile(r"\b[0-9]+(?:ST|ND|RD|TH)\b"), lambda found: found[0].lower()),
    # A list of numbers, where commas do not part thousands.
    (re.compile(r"(?<![0-9,])[0-9]+(?:,[0-9]+)+(?![0-9])"), lambda found: _listed(found[0])),
    # Four digits with a comma are no year.
    (re.compile(r"(?<![0-9.,])[0-9],[0-9]{3}(?![0-9,]|\.[0-9])"), lambda found: _count(found[0])),
    (re.compile(r"(?<=[A-Za-z])(?=[0-9])"), " "),
    (re.compile(r"(?<![\w.$£€])[0-9]+(?:\.[0-9]+){2,}(?!\w)"), lambda found: found[0].replace(".", " point ")),
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


def _outside_braces(clean: Cleaner, text: str, keep: Cleaner = str) -> str:
    """Cleans what is not in braces: phones typed by the user have to arrive as they are."""
    return "".join(
        keep(part) if part.startswith("{") and part.endswith("}") else clean(part) for part in _TYPED_PHONES.split(text)
    )


def collapse_spaces(text: str) -> str:
    """One space for every run of white space, line ends included."""
    return _SPACES.sub(" ", text)


def _range(found: re.Match[str]) -> str:
    """'3 to 5' of '3-5'; what does not rise, or looks like a telephone number, is left."""
    first, last = found.groups()
    rises = int(first) < int(last) and (len(first), len(last)) != (3, 4)
    return f"{first} to {last}" if rises else found[0]


def _count(number: str) -> str:
    """'1 thousand 234' of '1,234' and '1234', which alone are read as years."""
    digits = number.replace(",", "")
    if len(digits) != 4:
        return digits
    return f"{digits[0]} thousand{f' {int(digits[1:])}' if int(digits[1:]) else ''}"


def _money(found: re.Match[str]) -> str:
    """'2 dollars, 50 cents' of '$2.5', '10 thousand pounds' of '£10k'."""
    sign, whole, part, letters, scale = found.groups()
    unit, small = _CURRENCIES[sign]
    scale = _SCALES[letters.lower()] if letters else scale
    if scale or len(part or "") > 2:
        return f"{whole or 0}{f'.{part}' if part else ''} {f'{scale} ' if scale else ''}{unit}s"
    cents = int((part or "0").ljust(2, "0"))
    said = [f"{_count(whole)} {unit}{'' if whole == '1' else 's'}"] if whole.strip("0") or not cents else []
    if cents:
        said.append(f"{cents} {small if cents == 1 else 'pence' if small == 'penny' else f'{small}s'}")
    return ", ".join(said)


def _fraction(found: re.Match[str]) -> str:
    """'2 and three quarters' of '2 3/4'."""
    whole, fraction = found.groups()
    numerator, denominator = _VULGAR.get(fraction, fraction).split("/")
    plural = "" if numerator == "1" else "s"
    return f"{f'{whole} and ' if whole else ''}{_NUMERATORS[numerator]} {_PARTS[denominator]}{plural}"


def _listed(numbers: str) -> str:
    """'1, 2, 3' of '1,2,3'; what has groups of three is one number and left."""
    return numbers if re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+", numbers) else numbers.replace(",", ", ")


def sign_cleaners(text: str) -> str:
    """Signs in words, for an English cleaner to come after: quotes, dashes, money, % & ° # + = @, ranges, minus,
    fractions, times.

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
