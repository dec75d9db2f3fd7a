"""Signs, units and abbreviations of English as words: what a voice that learnt from plain sentences cannot say.

Numbers stay digits, for the cleaner that comes after.
"""

import re
import unicodedata
from collections.abc import Callable

from unidecode import unidecode

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

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
    rf"([{''.join(_VULGAR)}]|[1-9]/(?:[2-9]|10))(?![\w/])"
)
_PARTS = ("half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_PERIODS = "second|minute|hour|day|night|week|month|year|person"
_MATH = {
    **{"±": "plus or minus", "÷": "divided by", "≈": "about", "≠": "is not equal to"},
    **{"≤": "is at most", "≥": "is at least"},
}
_DEGREES = {"F": " degrees fahrenheit", "C": " degrees celsius", None: " degrees"}
_CLOCK = r"(?<![0-9:])([01]?[0-9]|2[0-3]):"
# After a number; one of them is without the last s.
_UNITS = {
    **{"km/h": "kilometers per hour", "mph": "miles per hour", "m/s": "meters per second"},
    **{"km": "kilometers", "cm": "centimeters", "mm": "millimeters", "mi": "miles"},
    **{"kg": "kilograms", "mg": "milligrams", "lb": "pounds", "lbs": "pounds", "oz": "ounces", "ml": "milliliters"},
    **{"Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "kW": "kilowatts", "dB": "decibels"},
    **{"KB": "kilobytes", "MB": "megabytes", "GB": "gigabytes", "TB": "terabytes"},
    **{"ms": "milliseconds", "sec": "seconds", "min": "minutes", "hr": "hours", "hrs": "hours"},
}
_SHORT_UNITS = {"m": "meters", "g": "grams", "l": "liters", "ft": "feet"}  # with small letters alone
_WORKDAYS = {
    **{"Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday"},
    **{"Thur": "Thursday", "Thurs": "Thursday", "Fri": "Friday"},
}
_DAYS = {**_WORKDAYS, "Sat": "Saturday", "Sun": "Sunday"}  # of which the last two are words, too
# Before a name; these and all after them with a full stop, which ends a sentence only at the end of the text.
_TITLES = {
    **{"Mr": "Mister", "Mrs": "Mrs", "Ms": "Ms", "Dr": "Doctor", "Prof": "Professor", "St": "Saint", "Mt": "Mount"},
    **{"Gen": "General", "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant"},
    **{"Sen": "Senator", "Gov": "Governor", "Rev": "Reverend"},
}
_MONTHS = {
    **{"Jan": "January", "Feb": "February", "Mar": "March", "Apr": "April", "Jun": "June", "Jul": "July"},
    **{"Aug": "August", "Sep": "September", "Sept": "September", "Oct": "October", "Nov": "November"},
    **{"Dec": "December"},
}
_ABBREVIATIONS = {
    **{"vs": "versus", "approx": "approximately", "etc": "etcetera", "Jr": "Junior", "Sr": "Senior"},
    **{"St": "Street", "Ave": "Avenue", "Rd": "Road", "Blvd": "Boulevard"},
    **{"Inc": "Incorporated", "Ltd": "Limited", "Corp": "Corporation", "Co": "Company", "Dept": "Department"},
    **{"e.g": "for example", "i.e": "that is", "Ph.D": "PHD", "a.k.a": "also known as", "cf": "compare", "al": "al"},
}

# Words that begin a sentence rather than are a name after an initial.
_OPENINGS = (
    "It|Its|He|His|She|Her|They|Their|We|Our|You|Your|My|The|This|That|These|There|Then|But|And|So|If|In|On|At|For|What|"
    "When|Who|How|Why|Is|Are|Do|Not|No|Yes|After|As"
)


def _any(words: dict[str, str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def _before(words: dict[str, str], what: str) -> Rule:
    """Abbreviations before something."""
    return re.compile(rf"(?<![\w.])({_any(words)})\.\s*(?={what})"), lambda found: f"{words[found[1]]} "


# In this order; what is left of them all is read by the cleaner that comes after.
_RULES: tuple[Rule, ...] = (
    (re.compile(r"\b(?:https?|ftp)://(?:www\.)?|\bwww\."), ""),
    (
        re.compile(
            r"(?<![\w.-])(?:(?:\+?1[-. ])?\(?[0-9]{3}\)?[-. ] ?[0-9]{3}[-.]|[0-9]{3}-)[0-9]{4}(?![\w-]|\.[0-9])"
        ),
        lambda found: ", ".join(" ".join(digits) for digits in re.findall("[0-9]+", found[0])),
    ),
    (re.compile(r"(?:…|\.{2,})(?=\s+[\"'(]*[A-Z0-9]|[\"')\s]*$)"), "."),
    (re.compile(r"\s*(?:…|\.{2,})\s*"), ", "),
    (re.compile(r"([?!])[?!]+"), r"\1"),
    (re.compile(r"(?<=[^\s,])(?:\s*(?:—|--+)\s*|\s+–\s+)(?=\w)"), ", "),
    (
        re.compile(rf"\b({_any(_DAYS)})\.?\s?[-–]\s?({_any(_DAYS)})\b\.?"),
        lambda found: f"{_DAYS[found[1]]} to {_DAYS[found[2]]}",
    ),
    (re.compile(r"(?<=[0-9])–(?=[0-9])"), " to "),
    (re.compile(r"[‘’“”–—]"), lambda found: found[0].translate(_PLAIN)),
    # Quotations and asides.
    (re.compile(r"(?<!\w)'([^']*)'(?!\w)"), r"\1"),
    (re.compile(r"(?<=[A-Za-z])\(([a-z]{1,3})\)"), r"\1"),
    (re.compile(r"(?<=[\w%'\"])\s*[(\[]\s*(?=\w)"), ", "),
    (re.compile(r"(?<=[\w%'\"])[)\]]\s*(?=[\w\"'(])"), ", "),
    (re.compile(r"[()\[\]\"«»„]"), ""),
    # Abbreviations.
    _before(_MONTHS, "[0-9]"),
    (re.compile(r"(?<=[0-9]\s)((?:[A-Z]\w*\s+){1,2})St\.(?=\s)"), r"\1Street"),
    (re.compile(rf"\b({_any(_WORKDAYS)})\.(?=\s)"), lambda found: _WORKDAYS[found[1]]),
    _before(_TITLES, r"[A-Z]"),
    _before({"p": "page", "pp": "pages", "Fig": "Figure", "fig": "figure", "Eq": "Equation", "Ch": "Chapter"}, "[0-9]"),
    (re.compile(rf"(?<![\w.])([A-Z])\.\s+(?=[A-Z]\.\s|(?!(?:{_OPENINGS})\b)[A-Z][a-z])"), r"\1 "),
    (
        re.compile(rf"(?<![\w.])({_any(_ABBREVIATIONS)})\.(\s*$)?"),
        lambda found: _ABBREVIATIONS[found[1]] + ("" if found[2] is None else f".{found[2]}"),
    ),
    # Numbers.
    (re.compile(r"(?<=[0-9][ap]m)-(?=[0-9])|(?<=:[0-9]{2})-(?=[0-9])", re.IGNORECASE), " to "),
    (re.compile(r"(?<=\w)²"), " squared"),
    (re.compile(r"(?<=\w)³"), " cubed"),
    (re.compile(r"(?<=[0-9]) 000\b"), ",000"),
    (re.compile(r"(?<![\w'])([0-9])'\s?([0-9]{1,2})(?![\w'])"), r"\1 foot \2"),
    (re.compile(r"(?<=[0-9])%-(?=[0-9])"), "% to "),
    (re.compile(r"(?<![\w.,$£€-])([0-9]{1,4})-([0-9]{1,4})(?![\w-]|[.,][0-9])"), lambda found: _range(found)),
    (re.compile(r"(?<=[0-9])\s+-\s+(?=[0-9])"), " minus "),
    (re.compile(r"([$£€])[-−](?=[0-9.])"), r"-\1"),
    (re.compile(r"(?:(?<=\s)|^)-(?=[$£€]?\.?[0-9])"), "minus "),
    (re.compile(r"([$£€])([0-9][0-9.,]*)-[$£€]?(?=[0-9])"), r"\2 to \1"),
    (re.compile(r"(\S?)\s*−\s*(?=[0-9$£€.])"), lambda found: f"{found[1]} minus " if found[1] else "minus "),
    (re.compile(r"(?<![\w.,$£€])([0-9]+(?:[.,][0-9]+)*)\s?([$£€])(?!\s?[0-9])"), r"\2\1"),
    (_MONEY, lambda found: _money(found)),
    (re.compile(r"€\s?([0-9][0-9.,]*[0-9]|[0-9])"), r"\1 euros"),
    (re.compile(r"(?<![\w.])\.(?=[0-9])"), "point "),
    (re.compile(r"(?<=[0-9])\s?%"), " percent"),
    (re.compile(r"(?<=[0-9])\s?°(?:\s?([FC])\b)?"), lambda found: _DEGREES[found[1]]),
    (re.compile(rf"(?<![\w.,])([0-9.,]*[0-9])\s?({_any(_UNITS)})(?![\w/])"), lambda found: _measure(found)),
    (re.compile(rf"(?<![\w.,])([0-9.,]*[0-9])\s?({_any(_SHORT_UNITS)})\b(?!['/])"), lambda found: _measure(found)),
    (re.compile(rf"(?<=\w)/({_any(_UNITS)})\b"), lambda found: f" per {_UNITS[found[1]].removesuffix('s')}"),
    (re.compile(r"(?<=[0-9])\s?¢"), " cents"),
    (re.compile(r"#(?=[0-9])"), "number "),
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
    (re.compile(rf"(?<=\w)\s?/\s?(?=(?:{_PERIODS})\b)"), " per "),
    (re.compile(r"(?<=[0-9])/(?=[0-9])"), " "),
    (re.compile(r"(?<=[0-9])(?=(?!(?:st|nd|rd|th|s|[fckdx])\b)[a-z]+\b)"), " "),
    (re.compile(r"(?<=\w)\^2(?!\w)"), " squared"),
    (re.compile(r"(?<=\w)\^3(?!\w)"), " cubed"),
    (re.compile(r"(?<=\w)\^(?=\w)"), " to the power of "),
    (re.compile(r"\s*([±÷≈≠≤≥])\s*"), lambda found: f" {_MATH[found[1]]} "),
    (re.compile(r"(?<=[0-9])\s?[*×]\s?(?=[0-9])|(?<=[0-9])\sx\s(?=[0-9])"), " times "),
    (re.compile(r"(?<=[0-9])x(?=[0-9])"), " by "),
    (re.compile(r"(?<=[0-9])x\b"), " times"),
    (re.compile(r"\bCO2\b"), "C O 2"),
    (re.compile(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Z])"), " "),
    (re.compile(r"(?<![0-9.,:])0[0-9]+(?![0-9]|[.,:][0-9])"), lambda found: " ".join(found[0])),
    (re.compile(r"(?<![\w.$£€])[0-9]+(?:\.[0-9]+){2,}(?!\w)"), lambda found: found[0].replace(".", " point ")),
    # Signs between words, and what is left of them.
    (re.compile(r"(?<=[\w-])\.(?=[a-z]{2,})"), " dot "),
    (re.compile(r"\band/or\b"), "and or"),
    (re.compile(r"(?<=\w)/(?=\w)"), " slash "),
    (re.compile(r"(?<=\w)\s*@\s*(?=\w)"), " at "),
    (re.compile(r"~\s*(?=[0-9$£€])"), "about "),
    (re.compile(r"(?<=\w)\s*<\s*(?=\w)"), " is less than "),
    (re.compile(r"(?<=\w)\s*>\s*(?=\w)"), " is greater than "),
    # Letters, not words, as in AT&T.
    (re.compile(r"\b[A-Z]{2,3}(?=&[A-Z]{1,3}\b)|(?<=[A-Z]&)[A-Z]{2,3}\b"), lambda found: " ".join(found[0])),
    (re.compile(r"\s*&\s*"), " and "),
    (re.compile(r"\s*\+\s*"), " plus "),
    (re.compile(r"\b([A-G])#"), r"\1 sharp"),
    (re.compile(r"\s*=\s*(?=\w)"), " equals "),
    (re.compile(r"\s*%"), " percent"),
    (re.compile(r"\s*°"), " degrees"),
    (re.compile(r"(?<=\w)\s+-\s+(?=\w)"), ", "),
    (re.compile(r"[*/#_|\\^~<>=+@`$£€{}•·§©®™]"), " "),
    (re.compile(r"(?<!\w)-+|-+(?!\w)"), " "),
    # Marks that came to stand together.
    (re.compile(r"\s+(?=[,.;:!?])"), ""),
    (re.compile(r",+(?=[,.;:!?])"), ""),
)


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
    """'2 and 3 quarters' of '2 3/4'."""
    whole, fraction = found.groups()
    numerator, denominator = map(int, _VULGAR.get(fraction, fraction).split("/"))
    if numerator >= denominator:
        return found[0]
    plural = "" if numerator == 1 else "s"
    return f"{f'{whole} and ' if whole else ''}{numerator} {_PARTS[denominator - 2]}{plural}"


def _listed(numbers: str) -> str:
    """'1, 2, 3' of '1,2,3'; what has groups of three is one number and left."""
    return numbers if re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+", numbers) else numbers.replace(",", ", ")


def _measure(found: re.Match[str]) -> str:
    """'5 kilometers' of '5km'."""
    amount, unit = found[1], (_UNITS | _SHORT_UNITS)[found[2]]
    if amount == "1":
        unit = "foot" if unit == "feet" else re.sub(r"s(?= per|$)", "", unit)
    return f"{amount} {unit}"


def _without_accents(text: str) -> str:
    """Latin letters in ASCII; the dictionary has words so, and hardly any corpus has other letters."""

    def plain(letter: str) -> str:
        if letter.isascii() or not unicodedata.name(letter, "").startswith("LATIN"):
            return letter
        return unidecode(letter).capitalize() if letter.isupper() else unidecode(letter)

    return "".join(map(plain, unicodedata.normalize("NFC", text)))


def write_signs_out(text: str) -> str:
    """Signs, units and abbreviations in words: "quotes" and (asides) by commas, Dr., e.g., 5 km, % & ° # + = @ / $,
    ranges, minus, fractions and times of day. Letters lose their accents.
    """
    text = _without_accents(text)
    for sign, words in _RULES:
        text = sign.sub(words, text)
    return text
