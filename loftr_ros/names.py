"""Names that somebody misspelt: which one was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another one; empty where none is like it.

    A name whose last part is right is meant by it: `max_parallax` is `keyframe.max_parallax`.
    """
    names = sorted(known)
    by_last = {other: other.rpartition(".")[2] for other in names}
    for wanted in (name, name.rpartition(".")[2]):
        if same := [other for other in names if by_last[other] == wanted or other == wanted]:
            return same[0]
    if close := difflib.get_close_matches(name, names, 1, cutoff=0.7):
        return close[0]
    last = difflib.get_close_matches(name.rpartition(".")[2], by_last.values(), 1, cutoff=0.75)
    return next((other for other in names if last and by_last[other] == last[0]), "")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A sentence on a name that nothing goes by.

    Args:
        what: the name is of, for example "parameter".
        name: as it was given.
        known: the names that there are.
    """
    meant = nearest(name, known)
    return f"{what} '{name}' is not known and has no effect" + (f"; did you mean '{meant}'?" if meant else "")
