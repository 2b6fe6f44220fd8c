"""Going through a recording: how far it came, what was lost on the way, and what a person is told of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loftr_ros.sources import Source, SourceError, SourceFrame

MARKER = "partial.txt"
_SHOWN = 3
_PERIOD = 60.0  # s between two lines
_MANY = 500


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

    def frames(self, source: Source, progress: bool, name: str = "") -> Iterator[SourceFrame]:
        """The frames of a source, with a progress bar; a source that breaks off ends them.

        Raises:
            SourceError: not even the first frame can be read.
        """
        from tqdm import tqdm

        said = _Lines(source, name) if not progress else None
        bar = tqdm(source, total=source.length, unit="frame", desc=name or None, disable=not progress)
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
            if said is not None:
                said.count()
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


class _Lines:
    """What is said without a progress bar: of a slow source how much there is, and a line a minute."""

    def __init__(self, source: Source, name: str) -> None:
        self._name, self._length = name or source.name, source.length
        self._done = 0
        self._start = self._said = time.monotonic()
        if source.slow and source.length is not None and source.length > _MANY:
            _say(f"{self._name} has {source.length} frames that are rendered one by one, which takes minutes")

    def count(self) -> None:
        """Another frame came."""
        self._done += 1
        now = time.monotonic()
        if now - self._said < _PERIOD:
            return
        self._said = now
        if self._length:
            left = (now - self._start) / self._done * max(self._length - self._done, 0) / 60
            _say(f"{self._name}: {self._done} of {self._length} frames, about {left:.0f} min to go")
        else:
            _say(f"{self._name}: {self._done} frames")


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
