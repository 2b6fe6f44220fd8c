"""Going through a recording: how far it came, what was lost on the way, and what a person is told of it."""

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
_FIRST = 10.0  # s after which a slow source's first line comes: by then its pace is known
_MANY = 300  # frames of a slow source, which take half a minute
_AHEAD = 16  # frames that a slow source is ahead of who processes them: 25 MB of 640x480 with depth


@dataclass
class Progress:
    """How far a recording was gone through.

    Attributes:
        interrupted: it was left before its end, by Ctrl-C.
        ended_early: why it could not be read on; empty where it could.
        lost: the source says that it could not give frames that it should have.
    """

    interrupted: bool = False
    ended_early: str = ""
    lost: int = 0

    def frames(self, source: Source, progress: bool, name: str = "", after: int | None = None) -> Iterator[SourceFrame]:
        """The frames of a source, with a progress bar; a source that breaks off ends them.

        What a slow source makes is made ahead, a few frames at a time, while those before are processed.

        Args:
            source: to go through.
            progress: show a bar; else a line a minute is written to standard error.
            name: of the source, where it is not its own.
            after: leave out frames up to this stamp, in nanoseconds.

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
        """Lets Ctrl-C end a loop, and remembers it: what was done until then is to be written."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True

    def missing(self, refused: Sequence[str], notes: Sequence[str] = ()) -> list[str]:
        """What is missing of the recording, for people; empty of a whole one.

        Args:
            refused: frames that could not be processed, with the reason.
            notes: of the source.
        """
        found = []
        if self.interrupted:
            found.append("stopped by Ctrl-C: what was written is of the frames until then")
        if self.ended_early:
            found.append(f"reading ended early: {self.ended_early}")
        if self.lost:
            found.append(f"{self.lost} frames could not be had of the recording: {'; '.join(notes)}")
        if refused:
            found.append(f"{len(refused)} frames were refused")
        return found


class Lines:
    """What is said where nobody sees a progress bar: of a slow source first how much there is, then a line a minute."""

    def __init__(self, source: Source, name: str = "", say: Callable[[str], None] | None = None) -> None:
        """Begin at zero.

        Args:
            source: what is gone through.
            name: of it, where it is not its own.
            say: takes each line; None writes it to standard error.
        """
        self._source, self._name, self._length = source, name or source.name, source.length
        self._say = say or _say
        self._done = 0
        self._start = self._due = 0.0

    def begin(self) -> None:
        """Of a slow source, how many frames there are and what they take; of one that is soon done, nothing."""
        if self._source.slow and (self._length is None or self._length > _MANY):
            count = "its" if self._length is None else f"its {self._length}"
            self._say(f"{self._name} renders {count} frames one by one; {self._source.cost}")

    def count(self) -> None:
        """Another frame came."""
        self._done += 1
        now = time.monotonic()
        if not self._start:  # what is done before the first frame tells nothing of the others
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


def first_reasons(refused: Sequence[str]) -> list[str]:
    """The first few reasons for which frames were refused, a line each."""
    more = len(refused) - _SHOWN
    return [f"  refused: {reason}" for reason in refused[:_SHOWN]] + ([f"  and {more} more"] if more > 0 else [])


def write_marker(output: Path, missing: Sequence[str]) -> None:
    """Says in the folder itself that what is in it is not of the whole recording; or takes that back."""
    if missing:
        (output / MARKER).write_text("\n".join(missing) + "\n")
    else:
        (output / MARKER).unlink(missing_ok=True)
