"""Weights files: every published layout is recognised and read."""
