"""Names that somebody misspelt: which one was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another one; empty where none is like it.

    A name whose last part is right is meant by it: `max_parallax` is `keyframe.max_parallax`.
    """
    names = sorted(known)
    last = {other: other.rpartition(".")[2] for other in names}
    wanted = name.rpartition(".")[2]
    same = [other for other in names if last[other] == wanted]
    if close := difflib.get_close_matches(name, same, 1, cutoff=0.0) or difflib.get_close_matches(name, names, 1, 0.7):
        return close[0]
    by_last = difflib.get_close_matches(wanted, last.values(), 1, cutoff=0.75)
    return next((other for other in names if by_last and last[other] == by_last[0]), "")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A sentence on a name that nothing goes by.

    Args:
        what: the name is of, for example "parameter".
        name: as it was given.
        known: the names that there are.
    """
    meant = nearest(name, known)
    return f"{what} '{name}' is not known and has no effect" + (f"; did you mean '{meant}'?" if meant else "")
