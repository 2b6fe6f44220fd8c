"""Iteration over a recording with progress, Ctrl-C, and a report of missing frames."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loftr_ros.recordings import Source, SourceError, SourceFrame
from loftr_ros.recordings.look_ahead import LookAhead

MARKER = "partial.txt"
_SHOWN = 3
_PERIOD = 60.0  # s between two lines
_FIRST = 10.0  # s before a slow source's first line, when its rate is known
_MANY = 300  # frames of a slow source that take half a minute
_AHEAD = 16  # frames that a slow source makes in advance: 25 MB of 640x480 with depth


@dataclass
class Progress:
    """Outcome of the iteration over a recording.

    Attributes:
        interrupted: Ctrl-C stopped it before its end.
        ended_early: why reading stopped; empty if it did not.
        lost: number of frames that the source could not provide.
    """

    interrupted: bool = False
    ended_early: str = ""
    lost: int = 0

    def frames(self, source: Source, progress: bool, name: str = "", after: int | None = None) -> Iterator[SourceFrame]:
        """Yield the frames of a source with a progress bar; a read error ends the iteration.

        Frames of a slow source are made in advance, a few at a time, while earlier ones are processed.

        Args:
            source: to iterate over.
            progress: show a bar; else a line per minute is written to standard error.
            name: replaces the source's own.
            after: skip frames up to this stamp, in nanoseconds.

        Raises:
            SourceError: not even the first frame can be read.
        """
        from tqdm import tqdm

        lines = Lines(source, name)
        lines.begin()
        if source.slow:
            source.prepare()  # here, where Ctrl-C ends it at once: a thread would have to be waited for
        items = source if after is None else source.after(after)
        made = LookAhead(items, lambda frame: frame, _AHEAD, wait=False) if source.slow else items
        bar = tqdm(made, total=source.length, unit="frame", desc=name or None, disable=not progress)
        frames, any_yet = iter(bar), False
        while True:
            try:
                frame = next(frames)
            except StopIteration:
                break
            except SourceError as error:
                if not any_yet:
                    raise
                self.ended_early = str(error)
                break
            any_yet = True
            if not progress:
                lines.count()
            yield frame
        self.lost += source.lost

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context in which Ctrl-C ends the loop and is remembered, so that the results so far are written."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True

    def missing(self, refused: Sequence[str], notes: Sequence[str] = ()) -> list[str]:
        """The missing parts of the recording, for people; empty if it is complete.

        Args:
            refused: frames that could not be processed, with the reason.
            notes: of the source.
        """
        found = []
        if self.interrupted:
            found.append("stopped by Ctrl-C: the output covers the frames until then")
        if self.ended_early:
            found.append(f"reading ended early: {self.ended_early}")
        if self.lost:
            found.append(f"{self.lost} frames of the recording could not be read: {'; '.join(notes)}")
        if refused:
            found.append(f"{len(refused)} frames were refused")
        return found


class Lines:
    """Progress lines in place of a bar: for a slow source first the amount of work, then a line per minute."""

    def __init__(self, source: Source, name: str = "", say: Callable[[str], None] | None = None) -> None:
        """Begin at zero.

        Args:
            source: the recording.
            name: replaces the source's own.
            say: called with each line; None writes it to standard error.
        """
        self._source, self._name, self._length = source, name or source.name, source.length
        self._say = say or _say
        self._done = 0
        self._start = self._due = 0.0

    def begin(self) -> None:
        """For a slow source, report the number of frames and their cost."""
        if self._source.slow and (self._length is None or self._length > _MANY):
            count = "its" if self._length is None else f"its {self._length}"
            self._say(f"{self._name} renders {count} frames one by one; {self._source.cost}")

    def count(self) -> None:
        """Count a frame."""
        self._done += 1
        now = time.monotonic()
        if not self._start:  # the time before the first frame does not predict the others
            self._start, self._due = now, now + (_FIRST if self._source.slow else _PERIOD)
        if now < self._due:
            return
        self._due = now + _PERIOD
        if self._length and self._done > 1:
            left = (now - self._start) / (self._done - 1) * max(self._length - self._done, 0) / 60
            self._say(f"{self._name}: {self._done} of {self._length} frames, about {left:.0f} min to go")
        else:
            self._say(f"{self._name}: {self._done} frames")


def _say(text: str) -> None:
    print(f"loftr_ros: {text}", file=sys.stderr, flush=True)


def first_reasons(reasons: Sequence[str], of: str = "refused: ") -> list[str]:
    """The first few reasons for refused frames, or others with the beginning `of`, one per line."""
    more = len(reasons) - _SHOWN
    return [f"  {of}{reason}" for reason in reasons[:_SHOWN]] + ([f"  and {more} more"] if more > 0 else [])


def write_marker(output: Path, missing: Sequence[str]) -> None:
    """Write a marker into the folder that its contents do not cover the whole recording; or remove it."""
    if missing:
        (output / MARKER).write_text("\n".join(missing) + "\n")
    else:
        (output / MARKER).unlink(missing_ok=True)
