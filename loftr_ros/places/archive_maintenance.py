"""Maintenance of an archive: compacts its table, deletes old versions, builds the index, and enforces the size
limit.
"""

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

# Older versions are kept this long for readers that have just begun. LanceDB's default is 7 days.
_KEPT = timedelta(seconds=10)
# Dropping starts at the first part of the size limit and stops at the second.
_HIGH_WATER, _LOW_WATER = 0.97, 0.9
# Number of rows from which an index is faster than a full scan; see `docs/archive.md`.
INDEXED_FROM = 20_000
# Parameters of the index: number of probed partitions, and factor of candidates that are compared exactly.
_PROBES, _REFINED = 40, 4
# A process that died while it held the lease keeps it for this long.
_LEASE_NS = 300 * 10**9
# An older file without a row was left behind by a crash. A younger one may still get its row.
_LEFT_BEHIND_S = 3600.0
# Approximate size of a row without its file; counted twice, like the table.
_ROW_BYTES = 4000


class Maintenance:
    """Background maintenance of an archive, in its own thread; only one process at a time runs it."""

    def __init__(self, uri: str, table: Any, leases: Any, files: Files, max_size_mb: float, writing: Any) -> None:
        """Create an idle maintenance.

        Args:
            uri: the archive's, for messages.
            table: of the keyframes.
            leases: a table with one row that names the process in charge; None to disable maintenance.
            files: the archive's.
            max_size_mb: size limit.
            writing: lock held while rows are written.
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
        """Called by the archive after each commit. Blocks only if keyframes come much faster than they can be
        dropped.
        """
        self._pieces += 1
        self._bytes += payload + rows * _ROW_BYTES
        if self._pieces >= self._threshold or (self._bytes > _HIGH_WATER * self._max_bytes and self._pieces >= 8):
            self._start()
        if self._bytes > self._max_bytes:
            self._wait()

    def tuned(self, query: Any) -> Any:
        """Set the index parameters of a search. Without an index they have no effect."""
        return query.nprobes(_PROBES).refine_factor(_REFINED)

    def measure(self) -> int:
        """Bytes of table and files, including older versions of the table."""
        return self._payload() + self._files.size(self._folder)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which nothing is dropped."""
        with self._dropping:
            yield

    def close(self) -> None:
        """Wait until the maintenance is done."""
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
        """Run the maintenance, unless another process does."""
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
            # Without maintenance the archive is slower and larger, but intact. The next run may succeed.
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
        """Bytes that cleaning up will not free: images, and the table twice, because compaction writes a second
        copy.
        """
        return self._payload() + 2 * int(self._table.stats()["total_bytes"])

    def _tidy(self) -> None:
        """Compact the table, add new rows to the index, and delete older versions."""
        try:
            self._table.optimize(cleanup_older_than=_KEPT)
        except (OSError, RuntimeError) as error:
            # Rows changed in the meantime; the next run compacts them.
            if "conflict" not in str(error).lower():
                raise
        self._leases.optimize(cleanup_older_than=_KEPT)

    def _sweep(self) -> None:
        """Delete files of processes that died before they wrote the rows."""
        left = self._files.older(IMAGES, _LEFT_BEHIND_S)
        rows = self._table.search().select(["file"]).to_arrow()
        self._files.delete(set(left) - set(rows["file"].to_pylist()))

    def _acquire_lease(self) -> bool:
        """Acquire the lease. Returns False if another process holds it; LanceDB lets only one of several writers change
        a row.
        """
        now = time.time_ns()
        with suppress(RuntimeError):
            free = f"holder = '' OR until_ns < {now}"
            taken = self._leases.update(where=free, values={"holder": self._me, "until_ns": now + _LEASE_NS})
            return bool(taken.rows_updated)
        return False

    def _release_lease(self) -> None:
        # If this fails, the lease expires by itself.
        with suppress(OSError, RuntimeError):
            self._leases.update(where=f"holder = '{self._me}'", values={"holder": ""})


def _pieces_for(rows: int) -> int:
    """Number of commits between compactions: each commit slows searches down, and compaction rewrites the table."""
    return max(32, math.isqrt(rows))
