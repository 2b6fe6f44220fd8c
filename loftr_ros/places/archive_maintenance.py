"""Keeps an archive small and quick: joins its table's pieces, cleans up, indexes, and drops keyframes at its bound."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from loftr_ros.places.archive_drop import drop
from loftr_ros.places.archive_files import IMAGES, Files, reported_errors
from loftr_ros.places.keyframe import PlacesError

_log = logging.getLogger(__name__)

# Older versions that are kept, for readers that have just begun; the default, for whoever stands still, is 7 days.
_KEPT = timedelta(seconds=10)
# Upkeep begins at this part of the bound, and drops to the lower one.
_HIGH_WATER, _LOW_WATER = 0.97, 0.9
# Rows from which on an index finds faster than a look at all of them; see `docs/archive.md`.
INDEXED_FROM = 20_000
# Of the index: parts that are looked through, and how many times the asked number is compared exactly.
_PROBES, _REFINED = 40, 4
# A process that died while it held the turn holds it for so long.
_LEASE_NS = 300 * 10**9
# Age from which on a file without a row is one that was left behind by a crash, not one that is about to get its row.
_LEFT_BEHIND_S = 3600.0
# What a row takes beside its file, about, counted twice like the table.
_ROW_BYTES = 4000


class Maintenance:
    """What an archive does beside adding and searching, in a thread of its own, one process at a time."""

    def __init__(self, uri: str, table: Any, leases: Any, files: Files, max_size_mb: float, writing: Any) -> None:
        """Begin with nothing to do.

        Args:
            uri: the archive's, for messages.
            table: of the keyframes.
            leases: a table of one row, which says whose turn it is among all processes; None to do nothing, ever.
            files: the archive's.
            max_size_mb: bound of its size.
            writing: lock that is held while rows are written.
        """
        self._uri, self._table, self._leases, self._files = uri, table, leases, files
        self._folder = f"{table.name}.lance"
        self._max_bytes = max_size_mb * 1e6
        self._writing = writing
        self._me = uuid.uuid4().hex
        self._thread: threading.Thread | None = None
        self._working, self._dropping = threading.Lock(), threading.Lock()
        self._swept = self._closed = False
        if leases is not None:
            self._pieces = table.stats()["fragment_stats"]["num_fragments"]
            self._threshold = _pieces_for(len(table))
            self._bytes = self._lasting()

    def added(self, payload: int, rows: int) -> None:
        """Told by the archive after each commit; waits only where much more is added than can be dropped."""
        self._pieces += 1
        self._bytes += payload + rows * _ROW_BYTES
        if self._pieces >= self._threshold or (self._bytes > _HIGH_WATER * self._max_bytes and self._pieces >= 8):
            self._start()
        if self._bytes > self._max_bytes:
            self._wait()

    def tuned(self, query: Any) -> Any:
        """A search with the parameters that fit the index; without an index they change nothing."""
        return query.nprobes(_PROBES).refine_factor(_REFINED)

    def measure(self) -> int:
        """Bytes of table and files, older versions of the table included."""
        return self._payload() + self._files.size(self._folder)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is dropped inside."""
        with self._dropping:
            yield

    def close(self) -> None:
        """Wait until it is done."""
        self._closed = True
        self._wait()

    def _start(self) -> None:
        if not self._closed and (self._thread is None or not self._thread.is_alive()):
            self._pieces = 0
            self._thread = threading.Thread(target=self._run, name="archive-maintenance", daemon=True)
            self._thread.start()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def run(self) -> None:
        """Do all that is to be done, unless another process is at it."""
        with self._working, reported_errors(self._uri, "cleaning up"):
            if self._acquire_lease():
                try:
                    self._work()
                finally:
                    self._release_lease()

    def _run(self) -> None:
        try:
            self.run()
        except PlacesError as error:
            # Without upkeep the archive is slower and larger, and whole; the next time may do it.
            _log.warning("%s", error)

    def _work(self) -> None:
        if not self._swept:
            self._swept = True
            self._sweep()
        self._tidy()
        size = self._lasting()
        if size > _HIGH_WATER * self._max_bytes and self._dropping.acquire(blocking=False):
            try:
                drop(self._table, self._files, int(size - _LOW_WATER * self._max_bytes), self._writing)
            finally:
                self._dropping.release()
            self._tidy()
            size = self._lasting()
        rows = len(self._table)
        if rows >= INDEXED_FROM and not self._table.list_indices():
            from lancedb.index import IvfSq

            self._table.create_index("descriptor", config=IvfSq(distance_type="cosine"))
        self._threshold = _pieces_for(rows)
        self._bytes = size

    def _payload(self) -> int:
        """Bytes of the files beside the table."""
        sizes = self._table.search().select(["image_bytes", "depth_bytes"]).to_arrow()
        return sum(int(column.to_numpy().sum()) for column in sizes.columns)

    def _lasting(self) -> int:
        """Bytes that are not given back by themselves: images, and the table twice, since it is written anew beside."""
        return self._payload() + 2 * int(self._table.stats()["total_bytes"])

    def _tidy(self) -> None:
        """Join the table's pieces, take new rows into the index, and forget older versions."""
        try:
            self._table.optimize(cleanup_older_than=_KEPT)
        except (OSError, RuntimeError) as error:
            # Rows were changed in between; the next time does it.
            if "conflict" not in str(error).lower():
                raise
        self._leases.optimize(cleanup_older_than=_KEPT)

    def _sweep(self) -> None:
        """Delete files that a process had written when it died before it wrote their rows."""
        left = self._files.older(IMAGES, _LEFT_BEHIND_S)
        rows = self._table.search().select(["file"]).to_arrow()
        self._files.delete(set(left) - set(rows["file"].to_pylist()))

    def _acquire_lease(self) -> bool:
        """Whether no other process is at it; LanceDB lets only one of several writers change a row."""
        now = time.time_ns()
        with suppress(RuntimeError):
            free = f"holder = '' OR until_ns < {now}"
            taken = self._leases.update(where=free, values={"holder": self._me, "until_ns": now + _LEASE_NS})
            return bool(taken.rows_updated)
        return False

    def _release_lease(self) -> None:
        # Where this fails the turn ends by itself.
        with suppress(OSError, RuntimeError):
            self._leases.update(where=f"holder = '{self._me}'", values={"holder": ""})


def _pieces_for(rows: int) -> int:
    """Commits after which pieces are joined: each makes a search slower, and joining writes the whole table anew."""
    return max(32, math.isqrt(rows))
