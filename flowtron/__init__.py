"""Flowtron: text-to-speech with an autoregressive normalizing flow (Valle et al. 2020, arXiv 2005.05957)."""

__version__ = "0.1.0"
