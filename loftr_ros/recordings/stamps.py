"""Conversion of times in lists and file names to nanoseconds. The size of a number decides its unit."""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from itertools import pairwise

import numpy as np

from loftr_ros.recordings.images import SourceError

SECONDS, NANOSECONDS = "s", "ns"
# Limits from which a number is no time since 1970 in a unit, but one in the next smaller unit.
_UNITS = ((Decimal(10) ** 11, 10**9), (Decimal(10) ** 14, 10**6), (Decimal(10) ** 17, 10**3))
_LARGEST = 2**63
_MOST_SECONDS = 2**31  # limit of a ROS stamp
_SHORTEST, _LONGEST = 10_000, 3600 * 10**9  # ns, plausible distance between images
_HALF_A_DAY = 43200 * 10**9  # ns
_TOLERATED = 0.1  # largest part of wrong stamps; only these images are lost


def to_nanoseconds(texts: Sequence[str], where: str, usual: str = SECONDS, lines: Sequence[int] = ()) -> list[int]:
    """Convert the stamps of a list.

    Args:
        texts: as written: 10.15, 1403715273262142976, 1.403715273262142976e+18.
        where: name of the list in errors.
        usual: usual unit of such lists; another is detected from the size of the numbers.
        lines: line numbers, for errors.

    Raises:
        SourceError: one is not a time.
    """
    values = []
    for number, text in enumerate(texts):
        line = f", line {lines[number]}" if lines else ""
        try:
            value = Decimal(text)
        except InvalidOperation as error:
            raise SourceError(f"{where}{line} holds the stamp '{text[:40]}'; expected a number") from error
        if not value.is_finite() or (value.is_signed() and value) or value.adjusted() > 20:
            raise SourceError(f"{where}{line} holds the stamp '{text[:40]}'; expected a time in seconds or nanoseconds")
        values.append(value)
    largest = max(values, default=Decimal(0))
    factor = next((factor for limit, factor in _UNITS if largest < limit), 1)
    if usual == NANOSECONDS and factor == 10**9 and all(value == value.to_integral_value() for value in values):
        factor = 1  # of a clock that began at zero
    stamps = [int((value * factor).to_integral_value()) for value in values]
    for number, stamp in enumerate(stamps):
        if stamp >= _LARGEST or stamp // 10**9 >= _MOST_SECONDS:
            line = f", line {lines[number]}" if lines else ""
            raise SourceError(f"{where}{line} holds the stamp '{texts[number][:40]}', which is later than 2038")
    return stamps


# A date and a time of day, as cameras, phones and loggers write them in names: 2024-01-31T23-59-59.123,
# 20240131_235959, PXL_20240131_235959123. A fraction without a point has three, six or nine digits.
_DATE_TIME = re.compile(
    r"(?<![0-9])((?:19|20)[0-9]{2})([-_.:]?)(0[1-9]|1[0-2])\2(0[1-9]|[12][0-9]|3[01])[-_. T]{0,3}"
    r"([01][0-9]|2[0-3])([-_.:]?)([0-5][0-9])\6([0-5][0-9])"
    r"(?:[.,]([0-9]{1,9})|[-_]?([0-9]{9}|[0-9]{6}|[0-9]{3}))?(?![0-9])"
)

_TIME_OF_DAY = re.compile(  # 23-59-59.123
    r"(?<![0-9])([01][0-9]|2[0-3])([-_:.])([0-5][0-9])\2([0-5][0-9])"
    r"(?:[.,]([0-9]{1,9})|[-_]([0-9]{9}|[0-9]{6}|[0-9]{3}))(?![0-9])"
)


def date_time(text: str) -> int | None:
    """The date and time of day in a text, interpreted as UTC, in nanoseconds since 1970; None without one."""
    found = _DATE_TIME.search(text)
    if found is None:
        return None
    year, _, month, day, hour, _, minute, second, *fraction = found.groups()
    try:
        date(int(year), int(month), int(day))
    except ValueError:  # 31 February
        return None
    seconds = timegm((int(year), int(month), int(day), int(hour), int(minute), int(second)))
    return seconds * 10**9 + int((fraction[0] or fraction[1] or "0").ljust(9, "0"))


def read_date_times(lines: Sequence[str], where: str) -> list[int]:
    """Stamps of lines such as `2011-09-26 13:02:25.964389445`, interpreted as UTC, in nanoseconds.

    Raises:
        SourceError: a line has no valid one.
    """
    stamps = []
    for number, line in enumerate(lines, start=1):
        stamp = date_time(line)
        if stamp is None or not 0 <= stamp // 10**9 < _MOST_SECONDS:
            raise SourceError(f"{where}, line {number} holds '{line[:40]}'; expected a date and a time of day")
        stamps.append(stamp)
    return stamps


def check_stamps(stamps: Sequence[int], where: str, remedy: str) -> None:
    """Check that stamps are plausible for consecutive images.

    Args:
        stamps: nanoseconds, in the order of the images.
        where: description of the source.
        remedy: advice.

    Raises:
        SourceError: many are equal or go back, or the steps between them are implausible for images.
    """
    if len(stamps) < 2:
        return
    steps = np.diff(np.array(stamps, np.int64))
    wrong = int((steps <= 0).sum())
    first, last = (f"{stamp / 1e9:.9g} s" for stamp in (stamps[0], stamps[-1]))
    if wrong > _TOLERATED * len(steps):
        raise SourceError(
            f"{where}: {wrong} of {len(stamps)} images are not later than the one before them (first "
            f"{first}, last {last}); {remedy}"
        )
    middle = float(np.median(steps[steps > 0]))
    if not _SHORTEST <= middle <= _LONGEST:
        raise SourceError(
            f"{where}: images are {middle / 1e9:.3g} s apart (first {first}, last {last}), which no camera does; "
            f"{remedy}"
        )


@dataclass(frozen=True)
class NameNumbers:
    """Information in the names of images.

    Attributes:
        order: the files' indices in the order of their numbers.
        numbers: whole numbers in that order; for names that are times, the images' positions.
        stamps: nanoseconds in that order if the names are times; else None.
        what: description of the number used, for people.
    """

    order: list[int]
    numbers: list[int]
    stamps: list[int] | None
    what: str


_DECIMAL = re.compile(r"(?<![0-9.,])([0-9]{1,12})[.,]([0-9]+)(?![0-9.,])")
_DECIMAL_OR_WHOLE = re.compile(r"[0-9]+(?:[.,][0-9]+)?")
_LENGTHS_OF_TIMES = (10, 13, 16, 19)  # digits of times since 1970 in seconds, milli-, micro- and nanoseconds


def read_names(names: Sequence[str], where: str, usual: str = "") -> NameNumbers:
    """The varying number in each name, as a count or as a time.

    Dates with a time of day are times. Decimals are times in seconds, unless two of them would be equal, as 10.1 and
    10.10 are, or contradict the numbers before them. Whole numbers are times if they are as large as those since 1970
    in seconds or parts of them; else they are counts.

    Args:
        names: of the files, without their endings.
        where: name of the folder in errors.
        usual: NANOSECONDS if names are always that.

    Raises:
        SourceError: there are no names, or one has no number.
    """
    if (dated := _dated(names)) is not None:
        times, what = dated
        order = sorted(range(len(names)), key=times.__getitem__)
        return NameNumbers(order, list(range(len(order))), [times[k] for k in order], what)
    of_day = all(_TIME_OF_DAY.search(name) for name in names)  # over midnight, where the seconds alone are ambiguous
    decimals = [None if of_day else _DECIMAL.search(name) for name in names]
    if any(decimals) and not all(decimals):  # as 1.5, 1.75, 2
        alone = [_DECIMAL_OR_WHOLE.findall(name) for name in names]
        if all(len(found) == 1 for found in alone):
            decimals = [_DECIMAL_OR_WHOLE.search(name) for name in names]
    texts = [found[0].replace(",", ".") for found in decimals if found]
    if names and len(texts) == len(names):
        values = [Decimal(text) for text in texts]
        order = sorted(range(len(names)), key=values.__getitem__)
        # If the numbers before them vary too, as hours and minutes do, they are not complete times.
        before = [_natural(name[: found.start()]) for name, found in zip(names, decimals, strict=True) if found]
        if len(set(values)) == len(values) and all(before[a] <= before[b] for a, b in pairwise(order)):
            stamps = to_nanoseconds([texts[k] for k in order], where)
            return NameNumbers(order, list(range(len(order))), stamps, "the decimal number as seconds")
    split = [re.findall(r"[0-9]+", name) for name in names]
    if not names or not all(split):
        without = next((name for name, found in zip(names, split, strict=True) if not found), "")
        raise SourceError(
            f"{where} has {len(names)} images, not all with a number in their names"
            + (f" ({without})" if without else "")
        )
    chosen, what = _varying(split)
    if (pair := _seconds_and_parts(split)) is not None:
        chosen, what = pair, "the two numbers as seconds and nanoseconds"
    if max(map(len, chosen)) > 25:
        raise SourceError(
            f"{where}: an image's name has the number {max(chosen, key=len)[:40]}; expected a count or a time"
        )
    numbers = [int(text) for text in chosen]
    order = sorted(range(len(names)), key=numbers.__getitem__)
    if usual == NANOSECONDS or min(numbers) >= 10**9:
        stamps = to_nanoseconds([chosen[k] for k in order], where, usual or SECONDS)
        return NameNumbers(order, list(range(len(order))), stamps, f"{what} as a time")
    return NameNumbers(order, [numbers[k] for k in order], None, what)


def _dated(names: Sequence[str]) -> tuple[list[int], str] | None:
    """Nanoseconds of names that are all dates with a time of day, or all times of one day, and all different."""
    dated = [stamp for name in names if (stamp := date_time(name)) is not None]
    if names and len(set(dated)) == len(names) and 0 <= min(dated) <= max(dated) < _MOST_SECONDS * 10**9:
        # 2024-01-05_000000 and so on is a date with a count from zero.
        counted = all(re.search(r"[0-9]{6}(?![0-9])", name) for name in names) and min(dated) // 10**9 % 86400 < 60
        return None if counted else (dated, "the date and time of day, as UTC")
    found = [match for name in names if (match := _TIME_OF_DAY.search(name)) is not None]
    of_day = [
        (int(each[1]) * 3600 + int(each[3]) * 60 + int(each[4])) * 10**9 + int((each[5] or each[6]).ljust(9, "0"))
        for each in found
    ]
    if names and len(set(of_day)) == len(names) and max(of_day) - min(of_day) < _HALF_A_DAY:  # not over midnight
        return of_day, "the time of day"
    return None


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]{1,25})", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _varying(split: list[list[str]]) -> tuple[list[str], str]:
    """In each name, the number at the position that varies most; among several such positions one with times, or the
    last.
    """
    shortest = min(map(len, split))
    if any(len(found) != shortest for found in split):
        return [found[-1] for found in split], "the last number"  # names of different forms
    kinds = [len({found[k] for found in split}) for k in range(shortest)]
    times = [all(len(found[k]) in _LENGTHS_OF_TIMES for found in split) for k in range(shortest)]
    place = max(range(shortest), key=lambda k: (kinds[k], times[k], k))
    what = "the number" if shortest == 1 else f"number {place + 1} of {shortest}, which varies most"
    return [found[place] for found in split], what


def _seconds_and_parts(split: list[list[str]]) -> list[str] | None:
    """Names like 1403715273_262142976, of seconds since 1970 and nanoseconds; None for others."""
    pairs = []
    for found in split:
        at = next((k for k in range(len(found) - 1) if len(found[k]) == 10 and len(found[k + 1]) == 9), None)
        if at is None:
            return None
        pairs.append(found[at] + found[at + 1])
    return pairs
