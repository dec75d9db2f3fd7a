"""Text that nobody wrote, through every cleaner and the tokenizer: no exception, no hang, bounded, idempotent.

    python scripts/fuzz_text.py                        100,000 strings from a grammar of awkward pieces
    python scripts/fuzz_text.py --atheris 200000       coverage-guided, by libFuzzer (pip install atheris)
    python scripts/fuzz_text.py --read                 numbers, dates and money against num2words

What holds for every string s and cleaner c, but for `flowtron_original_cleaners`, which repeats the original's
mistakes on purpose:

- c(s) and the tokenizer raise nothing but InputError, within a second of processor time for every thousand characters;
- len(c(s)) is at most 60 times len(s) and a hundred, a number of 36 digits being the longest to say;
- c(c(s)) is c(s), but that the hyphens in number words (twenty-first), which the original keeps, become spaces;
- `sign_cleaners`, with `flowtron_cleaners` after it, leaves no sign (it is not for its own output);
- the spans of words lie in order within the tokens, and every character is a token, or a space that was collapsed,
  or reported.
"""

import argparse
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator

if "--atheris" in sys.argv:
    import atheris

    # Before anything else imports it, so that the fuzzer sees its branches.
    with atheris.instrument_imports(include=["flowtron.text"]):
        import flowtron.text  # noqa: F401

from flowtron.errors import InputError
from flowtron.text import IPA_SYMBOLS, KOREAN_SYMBOLS, SYMBOLS, Tokenizer
from flowtron.text.cleaners import find_cleaner

NAMES = ("sign", "flowtron", "flowtron_original", "english", "transliteration", "basic", "korean", "ipa")
CLEANERS = tuple(f"{name}_cleaners" for name in NAMES)
CHAINS = {"sign_cleaners": ["sign_cleaners", "flowtron_cleaners"]}  # the one is made to come before the other
LEFT = re.compile(r"[\"()\[\]*/#_|\\^~<>=+@`$£€%°©]")
AS_ORIGINAL = "flowtron_original_cleaners"
SECONDS = 1.0
GROWTH, SLACK = 60, 100

PIECES = (  # noqa: SIM905
    "the a I AM PM am pm a.m. p.m. 10:30 9am 12:00pm 23:59 no. No. No.5 1st 2nd 3rd 21st 111th 1990s 1980's 3.14 "
    ".5 5. $5.50 $2 million £12.50 €3 ₩500 ¥7 5k 72F 20 c 3d CPU CPUs U.S.A. U.S. NASA's Dr. Mr. it's THE don't "
    "y'alls 's s' {HH AW1} {K} {} {{ }} {XX} {K café naïve 日本 한국어 3개 스무 😀 "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 مرحبا שלום \u200f \u202e \x00 \x1b[31m Ⅷ ² ٣ १ ｆｕｌｌ ﬁ ß ſ İ ı ǅ "
    "1,000,000 1,2,3 1/2 12/25/2023 2023-12-25 007 1e10 -5 +3 0x1F a.b.c ... -- — “q” ‘q’ http://a.b/?c=d "
    "me@x.org #1 50% & && @ _ ~ <b> &amp; ˈhɛloʊ /həˈloʊ/ \\n \ufeff � \ud7ff \ue000 \U0010ffff"
).split(" ")
MARKS = "0123456789$£€₩.,:;'\"-–—%{}[]()/\\ \t\n\r\x0c\u2028!?@#&*+=_~<>|^`°½©"
RANGES = ((32, 127), (0xA0, 0x2FFF), (0x3000, 0xD7FF), (0xE000, 0x10FFFF))


def strings(seed: int) -> Iterator[str]:
    """Yield awkward strings, of a few characters mostly, now and then of thousands."""
    draw = random.Random(seed)

    def piece() -> str:
        kind = draw.random()
        if kind < 0.5:
            return draw.choice(PIECES)
        if kind < 0.75:
            return "".join(draw.choice(MARKS) for _ in range(draw.randint(1, 8)))
        if kind < 0.85:
            return "".join(chr(draw.randint(*draw.choice(RANGES))) for _ in range(draw.randint(1, 5)))
        if kind < 0.95:
            return "".join(draw.choice("ABCIPMSamps.' ") for _ in range(draw.randint(1, 8)))
        return str(draw.randrange(10 ** draw.randint(1, 45)))

    while True:
        text = "".join(piece() + draw.choice((" ", " ", "", "  ")) for _ in range(draw.randint(1, 8)))
        yield text * draw.randint(50, 500) if draw.random() < 0.002 else text


def tokenizers() -> dict[str, Tokenizer]:
    """One tokenizer for each cleaner, with the symbols it is for."""
    symbols = {"korean_cleaners": KOREAN_SYMBOLS, "ipa_cleaners": IPA_SYMBOLS}
    return {name: Tokenizer(symbols.get(name, SYMBOLS), CHAINS.get(name, [name])) for name in CLEANERS}


def check(text: str, name: str, tokenizer: Tokenizer) -> None:
    """Check all that holds for a text and a cleaner.

    Raises:
        AssertionError: something does not.
    """

    def clean(text: str) -> str:
        for each in CHAINS.get(name, [name]):
            text = find_cleaner(each)(text)
        return text

    cleaned = clean(text)
    assert len(cleaned) <= GROWTH * len(text) + SLACK, f"{len(cleaned)} characters out of {len(text)}"
    if name in CHAINS:
        assert not LEFT.search(re.sub(r"\{[^{}]*\}", "", cleaned)), f"a sign is left in {cleaned!r}"
    elif name != AS_ORIGINAL:
        again = clean(cleaned)
        assert again.replace("-", " ") == cleaned.replace("-", " "), f"{cleaned!r} becomes {again!r}"
        assert clean(again) == again, f"{again!r} becomes {clean(again)!r}"
    for p_arpabet in (0, 1):
        try:
            spoken = tokenizer.encode(text, p_arpabet)
        except InputError:
            continue
        assert len(spoken.tokens) <= GROWTH * len(text) + SLACK
        assert all(0 <= token < len(tokenizer.symbols) for token in spoken.tokens)
        ends = [0, *(place for word in spoken.words for place in (word.start, word.end)), len(spoken.tokens)]
        assert ends == sorted(ends), "words out of order"
        if p_arpabet == 0 and not re.search(r"[{}]", spoken.cleaned):
            kept = [c for c in " ".join(spoken.cleaned.split()) if f"{c}" not in spoken.unknown]
            assert len(kept) == len(spoken.tokens), "a character was dropped without being reported"


def generate(n: int, seed: int) -> int:
    """Check n strings from the grammar; return the number of failures."""
    known, source = tokenizers(), strings(seed)
    for name in CLEANERS:
        check("1 word", name, known[name])  # dictionaries are loaded at first use
    failures, slowest, started = 0, (0.0, ""), time.perf_counter()
    seen: Counter[str] = Counter()
    for _ in range(n):
        text = next(source)
        for name in CLEANERS:
            began = time.process_time()
            try:
                check(text, name, known[name])
            except Exception as error:
                failures += 1
                print(f"{name}: {text[:200]!r}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            took = time.process_time() - began
            seen[name] += 1
            if took > slowest[0]:
                slowest = took, f"{name} on {len(text)} characters"
            if took > SECONDS * (1 + len(text) / 1000):
                failures += 1
                print(f"{name}: {took:.1f} s for {text[:200]!r}", file=sys.stderr)
    minutes = (time.perf_counter() - started) / 60
    print(f"{n} strings through {len(CLEANERS)} cleaners in {minutes:.1f} min: {failures} failures")
    print(f"slowest: {slowest[0]:.2f} s, {slowest[1]}")
    return failures


def guide(n: int) -> None:
    """Let libFuzzer look for strings that reach new code of the front-end; it ends at the first failure."""
    known = tokenizers()
    for name in CLEANERS:
        check("1 word", name, known[name])

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        name = CLEANERS[provider.ConsumeIntInRange(0, len(CLEANERS) - 1)]
        text = provider.ConsumeUnicodeNoSurrogates(200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(text, name, known[name])

    atheris.Setup([sys.argv[0], f"-runs={n}", "-max_len=400", "-timeout=10", "-rss_limit_mb=4096"], one)
    atheris.Fuzz()


def words_of(text: str) -> list[str]:
    """The words of a spoken number, without hyphens, commas and 'and'."""
    return [word for word in re.sub(r"[-,]", " ", text.lower()).split() if word != "and"]


def read_aloud(n: int, seed: int) -> int:
    """Compare numbers, ordinals, money, years, decimals and times with an independent reading; return failures."""
    from num2words import num2words

    clean, draw, failures = find_cleaner("flowtron_cleaners"), random.Random(seed), 0
    checked: Counter[str] = Counter()

    def compare(kind: str, typed: str, expected: str) -> None:
        nonlocal failures
        checked[kind] += 1
        if words_of(clean(typed)) != words_of(expected):
            failures += 1
            print(f"{kind}: {typed!r} is {clean(typed)!r}, not {expected!r}", file=sys.stderr)

    for _ in range(n):
        number = draw.randrange(10 ** draw.randint(1, 15))
        if not 1000 < number < 3000:
            compare("cardinal", str(number), num2words(number))
            compare("with commas", f"{number:,}", num2words(number))
        small = draw.randrange(1, 10 ** draw.randint(1, 4))
        compare("ordinal", num2words(small, to="ordinal_num"), num2words(small, to="ordinal"))
        dollars, cents = draw.randrange(1, 10**6), draw.randrange(1, 100)
        compare(
            "money",
            f"${dollars:,}.{cents:02d}",
            f"{num2words(dollars)} dollar{'s' * (dollars > 1)} {num2words(cents)} cent{'s' * (cents > 1)}",
        )
        # 1001 to 1009 are 'ten oh seven' here, as in the original, and 2001 to 2009 have no 'and' there.
        year = draw.randrange(1010, 3000)
        if not 2001 <= year <= 2009:
            compare("year", str(year), num2words(year, to="year").replace("oh-", "oh "))
        fraction = str(draw.randrange(10 ** draw.randint(1, 6)))
        point = " ".join(num2words(int(digit)) for digit in fraction)
        whole = draw.randrange(1000)
        compare("decimal", f"{whole}.{fraction}", f"{num2words(whole)} point {point}")
        hour, minute = draw.randrange(1, 13), draw.randrange(10, 60)
        compare("time", f"{hour}:{minute}", f"{num2words(hour)} {num2words(minute)}")
    print(f"{sum(checked.values())} readings ({', '.join(f'{k} {v}' for k, v in checked.items())}): {failures} differ")
    return failures


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=100_000, help="strings, or readings of each kind with --read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", type=int, default=0, metavar="RUNS", help="runs of the coverage-guided fuzzer")
    parser.add_argument("--read", action="store_true", help="compare numbers, dates and money with num2words")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.atheris:
        guide(options.atheris)
        return 0
    return 1 if (read_aloud if options.read else generate)(options.n, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
