"""Rendered ground truth: scenes, buildings, and walks through them, with exact poses and depth."""
