"""Numbers, money, ordinals, temperatures and times of day, as English words.

`as_original`: True reproduces the original Flowtron letter by letter, with its mistakes, which is
what its published checkpoints were trained with. Where the original crashes, both modes say something sensible.

Source: text/numbers.py and text/datestime.py of NVIDIA/flowtron (behaviour); docs/TEXT.md has the table of differences.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

_MAX_DIGITS = 36  # one more and `inflect` has no name for the number

_DIGIT_GROUPS = re.compile(r"[0-9][0-9,]+[0-9]")
_POUNDS = re.compile(r"£([0-9,]*[0-9])")
_SCALES = ("trillion", "billion", "million", "thousand", "hundred")
_DOLLARS = re.compile(rf"\$([0-9.,]*[0-9])( ?)({'|'.join(_SCALES)})?", re.IGNORECASE)
_DECIMAL = re.compile(r"([0-9]+)\.([0-9]+)")
_ORDINAL = re.compile(r"([0-9]+)(?:st|nd|rd|th)")
_UNITS = {"f": "fahrenheit", "c": "celsius", "k": "thousand", "d": "d"}
_MEASUREMENT = re.compile(r"([0-9.,]*[0-9])\s?([fckd])\b", re.IGNORECASE)
_INTEGER = re.compile(r"([0-9]+)('?s\b)?")
_INTEGER_OF_ORIGINAL = re.compile(r"([0-9]+)('s)?")

_TWELVE_HOUR_TIME = re.compile(r"([0-9]|[01][0-9]|2[0-3]):?([0-5][0-9])?\s*([ap])m\b", re.IGNORECASE)
_CLOCK_TIME = re.compile(r"([0-9]):([0-5][0-9])?")


@functools.lru_cache(maxsize=1)
def _speller() -> Callable[..., Any]:
    # inflect has its calls checked by typeguard, which compiles every one of its functions anew at import, for seconds.
    with contextlib.suppress(ImportError), _unchecked():
        import inflect
    import inflect

    return inflect.engine().number_to_words


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Let modules that are imported meanwhile do without typeguard's checks."""
    import typeguard

    checking = typeguard.typechecked
    typeguard.typechecked = lambda function: function  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = checking


@functools.lru_cache(maxsize=65536)
def _spell(number: str, andword: str = "and", **how: Any) -> str:
    """A number (or an ordinal) in words; one too long to have a name is read digit by digit."""
    digits = number.rstrip("stndrh")
    if len(digits.lstrip("0")) > _MAX_DIGITS:
        return " ".join(_spell(digit) for digit in digits)
    return str(_speller()(number, andword=andword, **how))


def _money(whole: str, part: str) -> str:
    """Dollars and cents in words; the part is a number of cents, so '5' is five of them and '345' so many."""
    amounts = [(whole.replace(",", "").lstrip("0"), "dollar"), (part.replace(",", "").lstrip("0"), "cent")]
    said = [f"{_spell(amount)} {unit}{'' if amount == '1' else 's'}" for amount, unit in amounts if amount]
    return ", ".join(said)


def _expand_dollars(match: re.Match[str], as_original: bool) -> str:
    amount, space, scale = match.group(1), match.group(2), match.group(3) or ""
    if not as_original:
        scale = scale.lower()
    if space and scale in _SCALES:
        return f"{amount} {scale} dollars "
    parts = amount.split(".")
    if len(parts) > 2:
        # Not an amount of money: the original swallows the space that follows.
        return (
            f"{amount}{space}{scale} dollars" if as_original else f"{amount}{f' {scale}' * bool(scale)} dollars{space}"
        )
    money = _money(parts[0], parts[1] if len(parts) == 2 else "")
    if money:
        return money + " "
    return "zero dollars" if as_original else f"zero dollars{space}"


def _expand_decimal(match: re.Match[str], as_original: bool) -> str:
    whole, fraction = match.groups()
    # Still digits: a unit may follow the last of them.
    return f"{whole} point {fraction if as_original else ' '.join(fraction)}"


def _expand_measurement(match: re.Match[str]) -> str:
    amount, unit = match.group(1), _UNITS[match.group(2).lower()]
    numbers: list[str] = re.findall(r"\d+(?:\.\d+)?", amount)
    if len(numbers) > 1:
        return f"{amount} {unit}"  # the original crashes; the numbers are read one by one later
    return f"{_spell(numbers[0])} {unit}"


def _year(number: int) -> str:
    if number == 2000:
        return "two thousand"
    if 2000 < number < 2010:
        return "two thousand " + _spell(str(number % 100))
    if number % 100 == 0:
        return _spell(str(number // 100)) + " hundred"
    return _spell(str(number), "", zero="oh", group=2).replace(", ", " ").replace("-", " ")


def _plural(word: str) -> str:
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith("x") else "s")


def _expand_integer(match: re.Match[str], as_original: bool) -> str:
    digits, suffix = match.groups()
    number = digits.lstrip("0") or "0"
    if len(number) == 4 and 1000 < int(number) < 3000:
        words = _year(int(number))
    else:
        words = _spell(number, "").replace("-", " ").replace(",", "")
    if not suffix:
        return words
    if as_original:
        return _plural(words) if words.endswith("y") else words
    return _plural(words)


def expand_numbers(text: str, as_original: bool = False) -> str:
    """Numbers into words: years in pairs, money, decimals, ordinals, and the units f, c, k and d."""
    text = _DIGIT_GROUPS.sub(lambda match: match.group().replace(",", ""), text)
    text = _POUNDS.sub(r"\1 pounds", text)
    text = _DOLLARS.sub(lambda match: _expand_dollars(match, as_original), text)
    text = _DECIMAL.sub(lambda match: _expand_decimal(match, as_original), text)
    text = _ORDINAL.sub(lambda match: _spell(match.group()), text)
    text = _MEASUREMENT.sub(_expand_measurement, text)
    integer = _INTEGER_OF_ORIGINAL if as_original else _INTEGER
    return integer.sub(lambda match: _expand_integer(match, as_original), text)


def expand_times(text: str, as_original: bool = False) -> str:
    """'5:30 pm' to '5 30 PM', '10:00 am' to '10 AM', '23:59' to '23 59'; the numbers stay digits."""

    def twelve_hours(match: re.Match[str]) -> str:
        hour, minutes, half = match.groups()
        if minutes and minutes != "00":
            hour = f"{hour} {minutes}"
        if as_original and half.isupper():
            return hour
        return f"{hour} {half.upper()}M"

    return _CLOCK_TIME.sub(lambda match: f"{match[1]} {match[2] or ''}", _TWELVE_HOUR_TIME.sub(twelve_hours, text))
