"""The symbol inventories: what a token id stands for.

A symbol is either one character or a phone of the ARPAbet with '@' in front. The position in the tuple is the id, so
an inventory must never be reordered once a model has been trained with it.
"""

CONSONANTS: tuple[str, ...] = ("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG")
CONSONANTS += ("P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH")
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")

# Vowels come bare and with the three degrees of stress; the order is alphabetical, as in the published checkpoints.
PHONES = tuple(sorted(CONSONANTS + tuple(vowel + stress for vowel in VOWELS for stress in ("", "0", "1", "2"))))

_PUNCTUATION = "!'\",.:;? "
_MATH = "#%&*+-/[]()"
_SPECIAL = "_@©°½—₩€$"
_ACCENTED = "áçéêëñöøćž"
_DIGITS = "0123456789"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

SYMBOLS: tuple[str, ...] = (
    *(_PUNCTUATION + _MATH + _SPECIAL + _ACCENTED + _DIGITS + _UPPER + _UPPER.lower()),
    *("@" + phone for phone in PHONES),
)
"""The 185 symbols of the published checkpoints. Padding shares id 0 with '!'; it is always masked."""

TACOTRON2_SYMBOLS: tuple[str, ...] = (
    *("_-!'(),.:;? " + _UPPER + _UPPER.lower()),
    *("@" + phone for phone in PHONES),
)
"""The 148 symbols of the published Tacotron 2 checkpoints, padding first."""

# In every inventory these two mean padding and end of text, so text can never produce them.
RESERVED = frozenset("_~")

_PAD = "_"

KOREAN_SYMBOLS: tuple[str, ...] = (
    _PAD,
    *" !'\"(),-.:;?…",
    *(chr(code) for code in range(0x1100, 0x1113)),  # 19 initial consonants
    *(chr(code) for code in range(0x1161, 0x1176)),  # 21 vowels
    *(chr(code) for code in range(0x11A8, 0x11C3)),  # 27 final consonants
)
"""Padding, punctuation and the conjoining jamo of modern Korean."""

_IPA_VOWELS = "iyɨʉɯuɪʏʊeøɘɵɤoəɛœɜɞʌɔæɐaɶɑɒɚɝ"
_IPA_CONSONANTS = "pbtdʈɖcɟkɡqɢʔmɱnɳɲŋɴʙrʀⱱɾɽɸβfvθðszʃʒʂʐçʝxɣχʁħʕhɦɬɮʋɹɻjɰlɭʎʟʍwɥʜʢʡɕʑɺɧʘǀǃǂǁɓɗʄɠʛ"
_IPA_PROSODY = "ˈˌːˑ.|‖‿↗↘˥˦˧˨˩"
_IPA_MODIFIERS = "ʰʷʲˠˤⁿˡ˞ʼ"
# Combining marks: nasal, tie bars, dental, syllabic, non-syllabic, voiceless, voiced, breathy, creaky, extra-short,
# raised, lowered, advanced, retracted, centralized, mid-centralized, rounded, unrounded, no audible release, cedilla.
_IPA_MARKS = "\u0303\u0361\u035c\u032a\u0329\u032f\u0325\u030a\u032c\u0324\u0330\u0306\u031d\u031e\u031f\u0320\u0308"
_IPA_MARKS += "\u033d\u0339\u031c\u031a\u0327"

IPA_SYMBOLS: tuple[str, ...] = (
    _PAD,
    *" !'\",-:;?",
    *dict.fromkeys(_IPA_VOWELS + _IPA_CONSONANTS.replace("ç", "") + _IPA_PROSODY + _IPA_MODIFIERS + _IPA_MARKS),
)
"""Padding, punctuation and the International Phonetic Alphabet in Unicode's decomposed form (ç is c and a cedilla)."""
