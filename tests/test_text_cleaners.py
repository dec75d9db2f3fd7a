"""Each cleaner on what it is for, and the documentation's tables and examples."""

import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowtron.errors import InputError
from flowtron.text import IPA_SYMBOLS, KOREAN_SYMBOLS, Tokenizer
from flowtron.text.cleaners import (
    basic_cleaners,
    english_cleaners,
    flowtron_cleaners,
    sign_cleaners,
    transliteration_cleaners,
)
from flowtron.text.ipa import ipa_cleaners, ipa_to_arpabet, replace_typed_ipa
from flowtron.text.korean import decompose, korean_cleaners, read_native, read_sino

DOCUMENT = (Path(__file__).parent.parent / "docs" / "TEXT.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)` \| (crashes|`.+?`) \| `(.+?)` \| .+ \|$", DOCUMENT, re.MULTILINE)
N_SPELLED = 16


@pytest.mark.parametrize("place", range(len(ROWS)), ids=lambda place: ROWS[place][0][:30])
@pytest.mark.filterwarnings("ignore:.*has no symbol")
def test_documented_difference(place: int) -> None:
    text, theirs, ours = ROWS[place]
    p_arpabet = 0 if place < N_SPELLED else 1
    tokenizer = Tokenizer()
    original = Tokenizer(cleaners=["flowtron_original_cleaners"])
    assert tokenizer.decode(tokenizer.encode(text, p_arpabet).tokens).strip() == ours
    if theirs != "crashes":
        assert original.decode(original.encode(text, p_arpabet).tokens).strip() == theirs.strip("`")


def test_documented_differences_are_all_read() -> None:
    assert len(ROWS) == N_SPELLED + 4


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL))
def test_documented_example_runs(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example, "docs/TEXT.md", "exec"), {})
    printed = [unicodedata.normalize("NFC", line) for line in capsys.readouterr().out.splitlines()]
    promised = re.findall(r"print\(.*\)  # (.+)", example)
    assert [line for line in printed if line in promised] == promised


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Meet me at 5:30 pm", "Meet me at five thirty {P IY1 EH1 M}"),
        ("state-of-the-art", "state of the art"),
        ("-5 degrees", "-five degrees"),
        ("$5.25 or £5", "five dollars, twenty-five cents or five pounds"),
        ("the 1,000th", "the one thousandth"),
        ("10.5k at 72F", "ten point five thousand at seventy-two fahrenheit"),
        ("in 1905, 2000, 2007", "in nineteen oh five, two thousand, two thousand seven"),
        ("No. 5", "number five"),
        ("CPUs of the U.S.A.", "{S IY1} {P IY1} {Y UW1 Z} of the {Y UW1 EH1 S EY1}"),
        ("a 3{K}", "a three{K}"),
    ],
)
def test_flowtron_cleaners(text: str, cleaned: str) -> None:
    assert flowtron_cleaners(text) == cleaned


def test_english_cleaners() -> None:
    assert english_cleaners("Mrs. Müller met Dr.  No at 5 {HH AW1}!") == "misess muller met doctor no at five {HH AW1}!"


def test_transliteration_cleaners() -> None:
    assert transliteration_cleaners("Привет,\n{K AE1 T} Ça") == "privet, {K AE1 T} ca"


def test_basic_cleaners() -> None:
    assert basic_cleaners("ÀB\t 5") == "àb 5"


@pytest.mark.parametrize(
    ("number", "sino"),
    [
        ("0", "영"),
        ("10", "십"),
        ("11", "십일"),
        ("110", "백십"),
        ("2024", "이천이십사"),
        ("10000", "만"),
        ("12345", "만이천삼백사십오"),
        ("110000", "십일만"),
        ("100000000", "일억"),
        ("1234567890", "십이억삼천사백오십육만칠천팔백구십"),
    ],
)
def test_sino_korean_numbers(number: str, sino: str) -> None:
    assert read_sino(number) == sino


@pytest.mark.parametrize(
    ("number", "native"),
    [
        ("1", "한"),
        ("2", "두"),
        ("3", "세"),
        ("4", "네"),
        ("10", "열"),
        ("20", "스무"),
        ("21", "스물한"),
        ("99", "아흔아홉"),
        ("103", "백세"),
    ],
)
def test_native_korean_numbers(number: str, native: str) -> None:
    assert read_native(number) == native


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("사과 3개", "사과 세개"),
        ("학생 20명이 12시에", "학생 스무명이 열두시에"),
        ("나는 21살", "나는 스물한살"),
        ("3개월 뒤 6월 10월", "삼개월 뒤 유월 시월"),
        ("오후 3시 30분", "오후 세시 삼십분"),
        ("₩3,000 또는 $5", "삼천 원 또는 오 달러"),
        ("3.05%", "삼 점 영오퍼센트"),
        ("-5도", "마이너스 오도"),
        ("010-1234-5678", "공일공 일이삼사 오육칠팔"),
        ("KBS 뉴스", "케이비에스 뉴스"),
        ("5만원", "오만원"),
        ("1번째, 2번째", "첫번째, 두번째"),
    ],
)
def test_korean_cleaners(text: str, spoken: str) -> None:
    cleaned = korean_cleaners(text)
    assert cleaned == decompose(spoken)
    tokenizer = Tokenizer(symbols=KOREAN_SYMBOLS, cleaners=["korean_cleaners"])
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.tokens) == cleaned
    assert encoded.unknown == []
    assert len(encoded.words) == len(spoken.split())


@given(st.text(alphabet=st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)))
def test_decomposition_is_unicodes(text: str) -> None:
    assert decompose(text) == unicodedata.normalize("NFD", text)


def test_ipa_passes_through() -> None:
    tokenizer = Tokenizer(symbols=IPA_SYMBOLS, cleaners=["ipa_cleaners"])
    spoken = tokenizer.encode("[ɡʊtn̩ ˈtaːk], /t͡ʃɔ̃ː ç gɪ/")
    assert tokenizer.decode(spoken.tokens) == unicodedata.normalize("NFD", "ɡʊtn̩ ˈtaːk, t͡ʃɔ̃ː ç ɡɪ")
    assert spoken.unknown == []
    assert [word.text for word in spoken.words][:2] == ["ɡʊtn̩", "ˈtaːk"]


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from([(KOREAN_SYMBOLS, "korean_cleaners"), (IPA_SYMBOLS, "ipa_cleaners")]))
@pytest.mark.filterwarnings("ignore")
def test_no_text_crashes_another_language(text: str, language: tuple[tuple[str, ...], str]) -> None:
    tokenizer = Tokenizer(symbols=language[0], cleaners=[language[1]])
    try:
        spoken = tokenizer.encode(text)
    except InputError:
        return
    assert all(0 < token < len(language[0]) for token in spoken.tokens)


def test_ipa_cleaner_keeps_ascii_g_out() -> None:
    assert ipa_cleaners("/ga/") == "ɡa"


@pytest.mark.parametrize(
    ("ipa", "arpabet"),
    [
        ("həˈloʊ", "{HH AH0 L OW1}"),
        ("/ˈt͡ʃɜːrtʃ/", "{CH ER1 CH}"),
        ("dʒʌdʒ", "{JH AH1 JH}"),
        ("əˌbaʊt", "{AH0 B AW2 T}"),
        ("əbaʊt", "{AH0 B AW1 T}"),
        ("ˈbʌtn̩", "{B AH1 T AH0 N}"),
        ("ˈwɔːtɚ ðə", "{W AO1 T ER0} {DH AH0}"),
        ("gɪv", "{G IH1 V}"),
    ],
)
def test_ipa_becomes_arpabet(ipa, arpabet):
    assert ipa_to_arpabet(ipa) == arpabet
    assert replace_typed_ipa(f"Say [[{ipa}]], and [[{ipa}]].") == f"Say {arpabet}, and {arpabet}."


@pytest.mark.parametrize(
    ("text", "match"), [("[[lɔχ]]", "'χ'"), ("[[]]", "no sound"), ("[[ˈ]]", "no sound"), ("[[lɔ]", "without closing")]
)
def test_ipa_without_counterpart_is_refused(text, match):
    with pytest.raises(InputError, match=match):
        replace_typed_ipa(text)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("I can’t “go” — we’ll, 1990–95", "I can't go, we'll, nineteen ninety to ninety five"),
        ("50% of AT&T", "fifty percent of A T and T"),
        ("72°F, 20 ° or -5 C", "seventy two degrees fahrenheit, twenty degrees or minus five celsius"),
        ("€20, #5, 2+2=4, a@b", "twenty euros, number five, two plus two equals four, a at b"),
        ("1/2 or ¾ of 24/7", "one half or three quarters of twenty four seven"),
        ("pages 10-20, call 555-1234", "pages ten to twenty, call five five five, one two three four"),
        ("10:00, 10:05, 9:30, 8:00 pm", "ten o'clock, ten oh five, nine thirty, eight {P IY1 EH1 M}"),
        ("1ST, 1,2,3 and 12,000", "first, one, two, three and twelve thousand"),
        ("MP3", "{EH1 M} {P IY1} three"),
        ("$1.5, $2.05 or $0.99", "one dollar, fifty cents, two dollars, five cents or ninety nine cents"),
        (
            "$3.5B, $10k and $1.234",
            "three point five billion dollars, ten thousand dollars and one point two three four dollars",
        ),
        ("$2 million dollars, $1, $0", "two million dollars, one dollar, zero dollars"),
        ("£1, £5 million, £12.50, £0.01", "one pound, five million pounds, twelve pounds, fifty pence, one penny"),
        (
            "£1,984 of -$5-10, $.50",
            "one thousand nine hundred eighty four pounds of minus five to ten dollars, fifty cents",
        ),
        ("2,005 in 2005", "two thousand five in two thousand five"),
        ("v1.2.3", "v one point two point three"),
        ("€1 for €2.5bn, 5€", "one euro for two point five billion euros, five euros"),
        (
            "2 3/4, 2½ or ⅝, not 1/2/24",
            "two and three quarters, two and one half or five eighths, not one two twenty four",
        ),
        (
            "−5 to 5−3, .5 and 10.20.1.1",
            "minus five to five minus three, point five and ten point twenty point one point one",
        ),
        (
            "At 12:05:30. 5 p.m. It is 6:30 a.m. here",
            "At twelve oh five thirty. five {P IY1 EH1 M}. It is six thirty {EY1} {EH1 M} here",
        ),
        ('He said "hello" (twice).', "He said hello, twice."),
        ("(He left.) The 'fine' [old] word(s)!", "He left. The fine, old, words!"),
        ("She's 'fine', the dogs' too.", "She's fine, the dogs' too."),
        ("Well... no… What?! It -- the - dash -- ended.", "Well, no. What? It, the, dash, ended."),
        ("Mr. Li met Dr. Wu vs. Mrs. Ray.", "Mister Li met Doctor Wu versus Mrs Ray."),
        ("St. Ives, 5 Main St. here; Main St.", "Saint Ives, five Main Street here; Main Street."),
        ("Fruit, e.g. apples, i.e. food, etc.", "Fruit, for example apples, that is food, etcetera."),
        ("Jan. 5 of Ph.D. Lee Jr.", "January five of {P IY1 EY2 CH D IY1} Lee Junior."),
        ("50 km/h, 1 kg, 5GB, 1mph", "fifty kilometers per hour, one kilogram, five gigabytes, one mile per hour"),
        ("3 x 4 or 2*3 at 640x480", "three times four or two times three at six hundred forty by four hundred eighty"),
        ("joe@my.example.com or https://www.x.org/a", "joe at my dot example dot com or x dot org slash a"),
        (
            "5/6 or 9/11, 10/10/2020, $5/month",
            "five sixths or nine eleven, ten ten twenty twenty, five dollars per month",
        ),
        (
            "C++, C#, A+, 10^6, 5 m², 5'10\" tall",
            "C plus plus, C sharp, A plus, ten to the power of six, five meters squared, five foot ten tall",
        ),
        (
            "J. R. R. Tolkien et al., pp. 10-20, cf. Fig. 3",
            "J R R Tolkien et al, pages ten to twenty, compare Figure three",
        ),
        ("Plan A. Then B. It failed.", "Plan A. Then B. It failed."),
        (
            "Mon.–Fri. 9–5, +1 (800) 555-0199, 007",
            "Monday to Friday nine to five, one, eight zero zero, five five five, zero one nine nine, zero zero seven",
        ),
        (
            "1.82 m, 1 ft, 50¢, £2.50/kg",
            "one point eight two meters, one foot, fifty cents, two pounds, fifty pence per kilogram",
        ),
        (
            "H2O at 5G, Wed. night, 123.4567",
            "H two O at five G, Wednesday night, one hundred twenty three point four five six seven",
        ),
        ("9am-5pm, 6:30-7:30", "nine {EY1} {EH1 M} to five {P IY1 EH1 M}, six thirty to seven thirty"),
        (
            "5m, 20p, F#, x^2, ±5, «a» CO2",
            "five meters, twenty p, F sharp, x squared, plus or minus five, a C O two",
        ),
        ("AT&T, R&D, YOU & ME", "A T and T, R and D, {Y UW1} and {M IY1}"),
        ("50%-60% off", "fifty percent to sixty percent off"),
        ("and/or *this* ~5 < 6", "and or this about five is less than six"),
        ("naïve Ærø café ß", "naive Aero cafe ss"),
        ("- A list - © 2020 #tag", "A list twenty twenty tag"),
        ("{AH0}, (then) {K}: etc. {S}", "{AH0}, then {K}: etcetera. {S}"),
        ("{AH0} 50% {K}", "{AH0} fifty percent {K}"),
        ("A plain sentence, nothing more.", "A plain sentence, nothing more."),
    ],
)
def test_sign_cleaners_before_flowtron_cleaners(text: str, cleaned: str) -> None:
    assert flowtron_cleaners(sign_cleaners(text)) == cleaned
    assert sign_cleaners(sign_cleaners(text)) == sign_cleaners(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="{}"), max_size=60))
@example("a---b -- 'c' ((d)) [e f) $ . .5 -.")
def test_no_sign_is_left_that_voices_do_not_learn(text: str) -> None:
    cleaned = flowtron_cleaners(sign_cleaners(text))
    assert re.fullmatch(r"(?:[A-Za-z .,;:!?'-]|\{[A-Z0-2 ]+\})*", cleaned)
    assert not re.search(r"(?<!\w)-|-(?!\w)", cleaned)


def test_the_bundled_voice_writes_signs_out() -> None:
    about = json.loads((Path(__file__).parent.parent / "flowtron/voices/demo/model.json").read_text())
    assert (
        about["cleaners"] == about["config"]["data_config"]["text_cleaners"] == ["sign_cleaners", "flowtron_cleaners"]
    )


def test_numbers_are_read_without_a_wait_for_typeguard() -> None:
    """inflect's functions are its own, not those that typeguard compiles; and typeguard checks again afterwards."""
    code = """
import sys
from flowtron.text.cleaners import flowtron_cleaners
assert flowtron_cleaners("5") == "five"
import inflect, typeguard
assert inflect.engine.number_to_words.__code__.co_filename == inflect.__file__
assert "check" not in " ".join(inflect.engine.number_to_words.__code__.co_names)
assert typeguard.typechecked.__module__.startswith("typeguard")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
