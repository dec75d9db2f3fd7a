"""Text that is already phonetic: the International Phonetic Alphabet, passed through."""

import re
import unicodedata

_SPACES = re.compile(r"\s+")
_NOTATION = re.compile(r"[/\[\]]")


def ipa_cleaners(text: str) -> str:
    """IPA in Unicode's decomposed form, without the slashes and brackets of transcriptions: '/həˈloʊ/' to 'həˈloʊ'.

    The ASCII g, which keyboards have, becomes the IPA's ɡ.
    """
    text = _NOTATION.sub("", unicodedata.normalize("NFD", text)).replace("g", "ɡ")
    return _SPACES.sub(" ", text).strip()
