"""Text to token ids.

N is the number of tokens of a sentence.
"""

import dataclasses
import itertools
import random
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flowtron.errors import InputError
from flowtron.text.cleaners import Cleaner, clean_and_trace, find_cleaner, flowtron_cleaners, flowtron_original_cleaners
from flowtron.text.ipa import replace_typed_ipa, typed_words
from flowtron.text.pronunciation import phonemize, phonemize_as_original
from flowtron.text.symbols import RESERVED, SYMBOLS

_WORD = re.compile(r"(?:\{[^{}]*\}|\S)+")
_BRACES = re.compile(r"\{([^{}]*)\}")

# The original takes the first brace that closes after at least one character, whatever stands between, another opening
# brace included.
_WORD_OF_ORIGINAL = re.compile(r"\S*\{.*?\}\S*|\S+")
_BRACES_OF_ORIGINAL = re.compile(r"\{(.+?)\}")


@dataclass(frozen=True)
class Word:
    """A spoken word and its tokens, [start, end)."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class TokenizedText:
    """A sentence as the model reads it.

    Attributes:
        tokens: N ids.
        words: The spoken words, in order, without the punctuation around them; an acronym is one word, as it was
            written, and a pronunciation typed as [[həˈloʊ]] is həˈloʊ.
        cleaned: The text after the cleaners, before words became phones.
        unknown: The characters (and phones, with their braces) that have no symbol and are missing from the tokens,
            each once, in order of appearance.
    """

    tokens: list[int]
    words: list[Word] = field(default_factory=list)
    cleaned: str = ""
    unknown: list[str] = field(default_factory=list)


class Tokenizer:
    """Turns text into token ids, and back.

    Args:
        symbols: What each id stands for: single characters, and phones of the ARPAbet with '@' in front.
        cleaners: Names of cleaners, applied in order.
        p_arpabet: Probability, in [0, 1], that a word is replaced by its phones.
        keep_ambiguous: Replace words that have several pronunciations too, by the first.

    Raises:
        InputError: An unknown cleaner, a probability outside [0, 1], or symbols that are not distinct.
    """

    def __init__(
        self,
        symbols: Sequence[str] = SYMBOLS,
        cleaners: Sequence[str] = ("flowtron_cleaners",),
        p_arpabet: float = 0.5,
        keep_ambiguous: bool = False,
    ) -> None:
        self.symbols = tuple(symbols)
        self.cleaners = tuple(cleaners)
        self.p_arpabet = _probability(p_arpabet)
        self.keep_ambiguous = keep_ambiguous
        self._ids = {symbol: id for id, symbol in enumerate(self.symbols)}
        if len(self._ids) != len(self.symbols):
            twice = next(symbol for symbol in self.symbols if self.symbols.count(symbol) > 1)
            raise InputError(f"The symbol {twice!r} stands twice among the symbols; each must stand for one token.")
        self._emitted = {symbol: id for symbol, id in self._ids.items() if symbol not in RESERVED}
        self._spoken = frozenset(id for symbol, id in self._ids.items() if _is_spoken(symbol))
        self._has_phones = any(_is_phone(symbol) for symbol in self.symbols)
        # Functions, not names: a process that receives the tokenizer may not have registered the cleaner.
        self._clean: tuple[Cleaner, ...] = tuple(find_cleaner(name) for name in self.cleaners)
        self._as_original = flowtron_original_cleaners in self._clean

    def encode_typed(self, text: str) -> TokenizedText:
        """The tokens of a text that somebody types: [[IPA]] becomes ARPAbet where the symbols are no IPA.

        Raises:
            InputError: As `encode`, or sounds in [[IPA]] have no phones.
        """
        if "ipa_cleaners" in self.cleaners:
            return self.encode(text)
        encoded, typed = self.encode(replace_typed_ipa(text)), typed_words(text)
        words = [dataclasses.replace(word, text=typed.get(word.text, word.text)) for word in encoded.words]
        return dataclasses.replace(encoded, words=words)

    def encode(
        self, text: str, p_arpabet: float | None = None, generator: random.Random | None = None
    ) -> TokenizedText:
        """The tokens of a text.

        Args:
            text: May contain phones of the ARPAbet in braces: 'Turn left on {HH AW1 S T AH0 N} street.'
            p_arpabet: As in the constructor, for this call; at 0 and 1 the result is deterministic.
            generator: Draws, one a word, which words become phones; needed strictly between 0 and 1.

        Raises:
            InputError: Nothing is left to say, or the generator is missing.
        """
        p_arpabet = self.p_arpabet if p_arpabet is None else _probability(p_arpabet)
        cleaned, written = self._clean_text(text)
        words = (_WORD_OF_ORIGINAL if self._as_original else _WORD).findall(cleaned)
        spelled = self._mix(words, p_arpabet, generator) if self._has_phones else words

        tokens, positions, unknown = self._look_up(" ".join(spelled))
        found = self._find_words(words, spelled, tokens, positions, written)
        if all(self.symbols[token] == " " for token in tokens) or (unknown and not found):
            raise InputError(_nothing_to_say(text, unknown))
        if unknown:
            warnings.warn(
                f"{' '.join(map(repr, unknown))} in {_shorten(text)} cannot be spoken and was left out: "
                "the model has no symbol for it.",
                stacklevel=2,
            )
        return TokenizedText(tokens, found, cleaned, unknown)

    @property
    def space(self) -> int:
        """The token between words."""
        return self._ids[" "]

    def spellings(self, text: str) -> list[tuple[list[int], list[int]]]:
        """The tokens of every word, spelled and as phones, to be joined by spaces to what `encode` draws.

        Empty where words cannot be looked up one by one: phones in braces reach over spaces.

        Raises:
            InputError: Nothing is left to say.
        """
        spelled, phones = self.encode(text, p_arpabet=0), self.encode(text, p_arpabet=1)
        if " " not in self._emitted:
            return []
        words = (_WORD_OF_ORIGINAL if self._as_original else _WORD).findall(spelled.cleaned)
        replaced = self._mix(words, 1, None) if self._has_phones else words
        pairs = [(self._look_up(word)[0], self._look_up(other)[0]) for word, other in zip(words, replaced)]
        for kind, whole in enumerate((spelled, phones)):
            joined = [token for pair in pairs for token in (self.space, *pair[kind])][1:]
            if joined != whole.tokens:
                return []
        return pairs

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for; phones come back in braces, neighbours in one pair.

        Raises:
            InputError: A token is no id of a symbol.
        """
        text = []
        for token in tokens:
            if not 0 <= token < len(self.symbols):
                raise InputError(
                    f"The token {token} stands for no symbol: ids go from 0 to {len(self.symbols) - 1}; decode with "
                    "the symbols that the text was encoded with."
                )
            symbol = self.symbols[token]
            text.append(f"{{{symbol[1:]}}}" if _is_phone(symbol) else symbol)
        return "".join(text).replace("}{", " ")

    def _clean_text(self, text: str) -> tuple[str, list[str]]:
        """The cleaned text, and what was written for each pair of braces in it; nothing where nobody knows."""
        written: list[str] = []
        for clean in self._clean:
            if clean is flowtron_cleaners:
                text, written = clean_and_trace(text)
            else:
                text = clean(text)
        known = not self._as_original and len(written) == len(_BRACES.findall(text))
        return text, written if known else []

    def _mix(self, words: list[str], p_arpabet: float, generator: random.Random | None) -> list[str]:
        replace = phonemize_as_original if self._as_original else phonemize
        if p_arpabet == 0:
            return words
        if p_arpabet == 1:
            return [replace(word, self.keep_ambiguous) for word in words]
        if generator is None:
            raise InputError(
                f"p_arpabet is {p_arpabet}, which mixes spelling and phones at random: hand in a random.Random as "
                "generator, or use 0 (spelling) or 1 (phones)."
            )
        return [replace(word, self.keep_ambiguous) if generator.random() < p_arpabet else word for word in words]

    def _look_up(self, text: str) -> tuple[list[int], list[int], list[str]]:
        """Tokens, the position in the text that each came from, and what has no symbol."""
        tokens: list[int] = []
        positions: list[int] = []
        unknown: dict[str, None] = {}

        def add(symbol: str, position: int, shown: str) -> None:
            id = self._emitted.get(symbol)
            if id is None:
                unknown[shown] = None
            else:
                tokens.append(id)
                positions.append(position)

        start = 0
        if self._has_phones:
            for match in (_BRACES_OF_ORIGINAL if self._as_original else _BRACES).finditer(text):
                for position in range(start, match.start()):
                    add(text[position], position, text[position])
                phones = match.group(1).split()
                for phone in phones:
                    add("@" + phone, match.start(), f"{{{phone}}}")
                if not phones:
                    unknown[match.group()] = None
                start = match.end()
        for position in range(start, len(text)):
            add(text[position], position, text[position])
        return tokens, positions, list(unknown)

    def _find_words(
        self, words: list[str], spelled: list[str], tokens: list[int], positions: list[int], written: list[str]
    ) -> list[Word]:
        found: list[tuple[str, list[str], list[int]]] = []
        in_braces = iter(written)
        token = word_start = 0
        for word, replaced in zip(words, spelled):
            word_end = word_start + len(replaced)
            while token < len(tokens) and positions[token] < word_start:
                token += 1
            start = token
            while token < len(tokens) and positions[token] < word_end:
                token += 1
            spoken = [place for place in range(start, token) if tokens[place] in self._spoken]
            pairs = [match.group() for match in _BRACES.finditer(word)]
            if written:
                pairs = list(itertools.islice(in_braces, len(pairs)))
            if pairs and not pairs[0]:  # the next letter of an acronym
                before = found.pop()
                found.append((before[0] + word, before[1] + pairs, before[2] + spoken))
            else:
                found.append((word, pairs, spoken))
            word_start = word_end + 1
        return [
            Word(_as_written(_without_punctuation(word), pairs), spoken[0], spoken[-1] + 1)
            for word, pairs, spoken in found
            if spoken
        ]


def _probability(p_arpabet: float) -> float:
    if not 0 <= p_arpabet <= 1:
        raise InputError(f"p_arpabet is {p_arpabet}, but it is a probability: give a number from 0 to 1.")
    return p_arpabet


def _is_phone(symbol: str) -> bool:
    return len(symbol) > 1 and symbol.startswith("@")


def _is_spoken(symbol: str) -> bool:
    """Whether the symbol sounds: a phone, a letter, a digit, a mark on a letter, or a sign that has a name."""
    if symbol == "|":  # a mathematical sign for Unicode, a pause in the IPA
        return False
    return _is_phone(symbol) or symbol in "#%&@" or unicodedata.category(symbol[0])[0] in "LNMS"


def _without_punctuation(word: str) -> str:
    """The word as one would show it, without what stands around it; phones keep their braces."""
    kept = [place for place, character in enumerate(word) if character in "{}" or _is_spoken(character)]
    return word[kept[0] : kept[-1] + 1] if kept else word


def _as_written(word: str, pairs: Iterable[str]) -> str:
    """The word with what was written in place of each pair of braces."""
    remaining = iter(pairs)
    return _BRACES.sub(lambda match: next(remaining), word)


def _shorten(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def _nothing_to_say(text: str, unknown: list[str]) -> str:
    if unknown:
        return (
            f"The text {_shorten(text)} has nothing to say, because the model has no symbol for "
            f"{' '.join(map(repr, unknown[:10]))}; write it in the characters that the model knows, or use a cleaner "
            "that does."
        )
    return f"The text {_shorten(text)} has nothing to say; give at least one character to speak."
