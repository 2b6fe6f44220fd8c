"""Readers for weights files in every published layout."""
