"""Text to tokens: cleaners, numbers, acronyms, pronunciation, symbols and the tokenizer over them."""

from flowtron.text.cleaners import register_cleaner
from flowtron.text.symbols import IPA_SYMBOLS, KOREAN_SYMBOLS, SYMBOLS
from flowtron.text.tokenizer import TokenizedText, Tokenizer, Word

__all__ = ["IPA_SYMBOLS", "KOREAN_SYMBOLS", "SYMBOLS", "TokenizedText", "Tokenizer", "Word", "register_cleaner"]
