"""Text for people."""

from __future__ import annotations

import math


def shortened(text: str, most: int) -> str:
    """The text, cut after a word and with an ellipsis if it has more than `most` characters.

    A word is cut only if it takes more than half of the length by itself, such as a path.
    """
    if len(text) <= most:
        return text
    room = most - 2  # for the space and the ellipsis
    end = text.rfind(" ", 0, room + 1)
    if end < room // 2:
        return f"{text[: room + 1]}…"
    return f"{text[:end].rstrip(' ,;:.')} …"


def plain(value: float, digits: int = 3) -> str:
    """A number with some significant digits and without an exponent, such as 140, 1.26 or 0.034."""
    if not math.isfinite(value) or not value:
        return f"{value:g}"
    text = f"{value:.{min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
