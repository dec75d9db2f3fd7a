"""Phonetic text in the International Phonetic Alphabet: passed through, or as phones of the ARPAbet."""

import re
import unicodedata

from flowtron.errors import InputError

_SPACES = re.compile(r"\s+")
_NOTATION = re.compile(r"[/\[\]]")
_TYPED = re.compile(r"\[\[(.*?)\]\]")
# English sounds. A schwa is never stressed; vowels take the stress of the mark before them as a digit.
_VOWELS = {
    **{"aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "oʊ": "OW", "əʊ": "OW", "ɔɪ": "OY", "i": "IY", "ɪ": "IH", "u": "UW"},
    **{"ʊ": "UH", "ɛ": "EH", "e": "EH", "æ": "AE", "a": "AA", "ɑ": "AA", "ɒ": "AA", "ɔ": "AO", "ʌ": "AH", "ə": "AH"},
    **{"ɝ": "ER", "ɚ": "ER", "ɜɹ": "ER", "ɜr": "ER", "ɜ": "ER", "əɹ": "ER", "ər": "ER"},
}
_CONSONANTS = {
    **{"tʃ": "CH", "ʧ": "CH", "dʒ": "JH", "ʤ": "JH", "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "ɡ": "G"},
    **{"m": "M", "n": "N", "ŋ": "NG", "f": "F", "v": "V", "θ": "TH", "ð": "DH", "s": "S", "z": "Z", "ʃ": "SH"},
    **{"ʒ": "ZH", "h": "HH", "l": "L", "ɫ": "L", "ɹ": "R", "r": "R", "w": "W", "j": "Y", "ɾ": "T"},
}
_STRESS = {"ˈ": "1", "'": "1", "ˌ": "2"}
_IGNORED = re.compile("[ː.‿\u0361\u035c]")  # length, the end of a syllable, ties
_SYLLABIC = "\u0329"


def ipa_cleaners(text: str) -> str:
    """IPA in Unicode's decomposed form, without the slashes and brackets of transcriptions: '/həˈloʊ/' to 'həˈloʊ'.

    The ASCII g, which keyboards have, becomes the IPA's ɡ.
    """
    text = _NOTATION.sub("", unicodedata.normalize("NFD", text)).replace("g", "ɡ")
    return _SPACES.sub(" ", text).strip()


def ipa_to_arpabet(ipa: str) -> str:
    """Write English words in IPA as phones in braces: 'həˈloʊ' to '{HH AH0 L OW1}'.

    A word without a mark of stress is stressed on its first vowel that is no schwa.

    Raises:
        InputError: a sign stands for no sound that the ARPAbet has.
    """
    return " ".join(f"{{{' '.join(_phones(word))}}}" for word in ipa_cleaners(ipa).split(" "))


def _phones(word: str) -> list[str]:
    phones: list[str] = []
    stress, first_full = "0", -1
    rest = _IGNORED.sub("", word)
    while rest:
        two, one = rest[:2], rest[0]
        if one in _STRESS:
            stress, size = _STRESS[one], 1
        elif one == _SYLLABIC and phones:
            phones.insert(-1, "AH0")
            size = 1
        elif two in _VOWELS or one in _VOWELS:
            vowel = two if two in _VOWELS else one
            size = len(vowel)
            if first_full < 0 and vowel != "ə":
                first_full = len(phones)
            phones.append(_VOWELS[vowel] + stress)
            stress = "0"
        elif two in _CONSONANTS or one in _CONSONANTS:
            size = 2 if two in _CONSONANTS else 1
            phones.append(_CONSONANTS[rest[:size]])
        else:
            raise InputError(
                f"{one!r} in [[{word}]] has no counterpart in this model's ARPAbet; write the word in ARPAbet, for "
                "example {HH AH0 L OW1}."
            )
        rest = rest[size:]
    if not phones:
        raise InputError(f"[[{word}]] has no sound; write a word in it, for example [[həˈloʊ]].")
    if not any(phone[-1] in "12" for phone in phones) and first_full >= 0:
        phones[first_full] = phones[first_full][:-1] + "1"
    return phones


def replace_typed_ipa(text: str) -> str:
    """Replace pronunciations typed as [[həˈloʊ]] by phones in braces.

    Raises:
        InputError: as `ipa_to_arpabet`, or brackets that do not close.
    """
    replaced = _TYPED.sub(lambda match: ipa_to_arpabet(match[1]), text)
    if "[[" in replaced:
        raise InputError(f"{text!r} opens [[ without closing it; write for example [[həˈloʊ]].")
    return replaced


def typed_words(text: str) -> dict[str, str]:
    """The words of pronunciations typed as [[həˈloʊ]], by the phones in braces that they become.

    Raises:
        InputError: as `ipa_to_arpabet`.
    """
    words = [word for match in _TYPED.finditer(text) for word in ipa_cleaners(match[1]).split(" ")]
    return {ipa_to_arpabet(word): word for word in words}
