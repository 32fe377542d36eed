"""Weights to and from PyTorch: `rules` says how, a module a family says what, `convert` does it."""
