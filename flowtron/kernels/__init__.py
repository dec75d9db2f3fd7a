"""Compute kernels: small C++ sources, compiled at first use, each with an equal pure-torch fallback."""
