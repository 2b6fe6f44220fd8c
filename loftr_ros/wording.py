"""Text for people."""

from __future__ import annotations


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters: cut after a word, with an ellipsis, where it is longer.

    A word is cut only where it takes more than half of the room by itself, such as a path.
    """
    if len(text) <= most:
        return text
    room = most - 2  # for the space and the ellipsis
    end = text.rfind(" ", 0, room + 1)
    if end < room // 2:
        return f"{text[: room + 1]}…"
    return f"{text[:end].rstrip(' ,;:.')} …"
