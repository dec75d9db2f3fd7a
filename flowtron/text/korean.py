"""Korean text as conjoining jamo, with numbers, money and Latin letters read in Korean."""

import re
import unicodedata

_SINO_DIGITS = "영일이삼사오육칠팔구"
_NATIVE_UNITS = ("", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉")
_NATIVE_TENS = ("", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔")
_PLACES = ("", "십", "백", "천")
_MYRIADS = ("", "만", "억", "조", "경", "해", "자")  # powers of 10,000

# Counters that take native numbers. What looks like one but takes sino-Korean is excluded: 개월 (months), 개국, 시즌.
_NATIVE_COUNTERS = (
    "개(?!월|년|국|소)|명|시(?!즌)|살|마리|권|잔|병|벌|송이|그루|사람|가지|달(?!러)|켤레|자루|채(?!널)|군데|번째"
)
_NUMBER = re.compile(rf"([0-9]+(?:,[0-9]{{3}})+|[0-9]+)(?:\.([0-9]+))?(\s*)({_NATIVE_COUNTERS})?")
_MINUS = re.compile(r"(?<![\w.])[-−](?=[0-9])")
_MONEY = re.compile(r"([₩$€£¥])\s*([0-9][0-9,]*(?:\.[0-9]+)?)(\s*[만억조])?")
_CURRENCIES = {"₩": "원", "$": "달러", "€": "유로", "£": "파운드", "¥": "엔"}
_SIGNS = {"%": "퍼센트", "℃": "도", "°": "도", "&": "앤드", "+": " 플러스 "}
_PHONE_NUMBER = re.compile(r"(?<![0-9-])0[0-9]*(?:-[0-9]+)+")
_RANGE = re.compile(r"(?<=[0-9])\s*[~∼〜]\s*(?=[0-9])")
_INNER_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_IRREGULAR_MONTH = re.compile(r"(?<![0-9.,])(6|10)월")
_LETTERS = "에이 비 씨 디 이 에프 지 에이치 아이 제이 케이 엘 엠 엔 오 피 큐 아르 에스 티 유 브이 더블유 엑스 와이 제트"
_LETTER_NAMES = dict(zip("abcdefghijklmnopqrstuvwxyz", _LETTERS.split(" ")))
_LATIN = re.compile(r"[A-Za-z]")
_SPACES = re.compile(r"\s+")

_SYLLABLES = range(0xAC00, 0xD7A4)
_N_VOWELS, _N_FINALS = 21, 28  # no final consonant counts as one of the finals


def read_digits(digits: str) -> str:
    """Digit by digit, with 공 for zero, as telephone numbers are read: '010' is 공일공."""
    return "".join("공" if digit == "0" else _SINO_DIGITS[int(digit)] for digit in digits)


def read_sino(digits: str) -> str:
    """A whole number in sino-Korean: '12345' is 만이천삼백사십오. Beyond the named myriads, digit by digit."""
    digits = digits.lstrip("0")
    if not digits:
        return _SINO_DIGITS[0]
    if len(digits) > 4 * len(_MYRIADS):
        return read_digits(digits)
    spoken = []
    for power, myriad in enumerate(_MYRIADS):
        group = digits[max(0, len(digits) - 4 * power - 4) : len(digits) - 4 * power]
        said = ""
        for place, digit in zip(_PLACES, reversed(group)):
            if digit != "0":
                # "One" goes unsaid before ten, hundred and thousand.
                said = ("" if digit == "1" and place else _SINO_DIGITS[int(digit)]) + place + said
        if said:
            spoken.append(("" if said == "일" and myriad == "만" else said) + myriad)
        if len(digits) <= 4 * power + 4:
            break
    return "".join(reversed(spoken))


def read_native(digits: str) -> str:
    """A whole number before a counter, in native Korean below a hundred: '21' is 스물한, '20' 스무, '103' 백세."""
    digits = digits.lstrip("0")
    if not digits:
        return _SINO_DIGITS[0]
    hundreds, tens, units = digits[:-2], int(digits[-2:-1] or 0), int(digits[-1])
    said = "스무" if (tens, units) == (2, 0) else _NATIVE_TENS[tens] + _NATIVE_UNITS[units]
    return (read_sino(hundreds + "00") if hundreds else "") + said


def _read_number(match: re.Match[str]) -> str:
    whole, fraction, space, counter = match.groups()
    whole = whole.replace(",", "")
    if fraction is not None:
        said = f"{read_sino(whole)} 점 {read_digits(fraction).replace('공', '영')}"
        return said + space + (counter or "")
    if counter == "번째" and whole.lstrip("0") == "1":
        return f"첫{space}번째"
    return (read_native(whole) if counter else read_sino(whole)) + space + (counter or "")


def decompose(text: str) -> str:
    """Hangul syllables into conjoining jamo, by the arithmetic of the Unicode block; other characters stay.

    A syllable is 0xAC00 + (initial * 21 + vowel) * 28 + final.
    """
    jamo = []
    for character in text:
        if ord(character) in _SYLLABLES:
            rest, final = divmod(ord(character) - _SYLLABLES.start, _N_FINALS)
            initial, vowel = divmod(rest, _N_VOWELS)
            character = chr(0x1100 + initial) + chr(0x1161 + vowel) + (chr(0x11A7 + final) if final else "")
        jamo.append(character)
    return "".join(jamo)


def korean_cleaners(text: str) -> str:
    """Korean for `KOREAN_SYMBOLS`: numbers, money, signs and Latin letters in words, then syllables into jamo.

    Numbers are sino-Korean, but native before counters such as 개, 명, 시 and 살; a telephone number, which starts with
    zero and has hyphens, is read digit by digit.
    """
    text = unicodedata.normalize("NFC", text)
    text = _PHONE_NUMBER.sub(lambda match: " ".join(map(read_digits, match.group().split("-"))), text)
    text = _MONEY.sub(lambda match: f"{match[2]}{(match[3] or '').strip()} {_CURRENCIES[match[1]]}", text)
    text = _MINUS.sub("마이너스 ", text)
    text = _RANGE.sub("에서 ", text)
    text = _INNER_HYPHEN.sub(" ", text)
    text = _IRREGULAR_MONTH.sub(lambda match: "유월" if match[1] == "6" else "시월", text)
    text = _NUMBER.sub(_read_number, text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    text = _LATIN.sub(lambda match: _LETTER_NAMES[match.group().lower()], text)
    text = _INNER_HYPHEN.sub(" ", text)  # again, between what signs and letters have become
    return decompose(_SPACES.sub(" ", text).strip())
