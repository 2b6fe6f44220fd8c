"""An archive of keyframes, on disk or in an object store, searched by descriptor.

A LanceDB table holds everything but the images. `docs/archive.md` gives the reasons and the costs.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from loftr_ros.extras import how_to_install
from loftr_ros.places.archive_files import IMAGES, BucketFiles, Files, FolderFiles, file_name, links, reported_errors
from loftr_ros.places.archive_maintenance import Maintenance
from loftr_ros.places.archive_rows import (
    CANDIDATE_COLUMNS,
    FORMAT,
    named,
    pack_depth,
    robot_is,
    schema,
    to_candidate,
    to_keyframe,
    to_name,
    to_row,
    to_table,
)
from loftr_ros.places.keyframe import ArchivedKeyframe, Candidate, KeyframeName, PlacesError, RecentPast

TABLE, LEASES = "keyframes", "turns"

# Keyframes per commit when copying between archives. Their images must fit into memory together.
_BATCH = 64
# LanceDB's own limits are gigabytes.
_INDEX_CACHE = 256 << 20
_METADATA_CACHE = 64 << 20


T = TypeVar("T")


class Archive:
    """A persistent store of keyframes.

    One thread may write while others read. Other processes, and other robots that share the place, may do the same.
    """

    def __init__(self, uri: str, table: Any, leases: Any, files: Files, max_size_mb: float, read_only: bool) -> None:
        """Use `Archive.open`."""
        self._uri = uri
        self._table = table
        self._files = files
        self._read_only = read_only
        self._writing = threading.RLock()
        self._maintenance = Maintenance(uri, table, leases, files, max_size_mb, self._writing)

    @classmethod
    def open(
        cls, uri: str, space: str, dimension: int, *, max_size_mb: float = 2000.0, read_only: bool = False
    ) -> Archive:
        """Open an archive, or create it if the place is empty.

        Args:
            uri: a folder, or s3://bucket/folder (credentials and endpoint in the usual AWS_* variables).
            space: name of the descriptor space; must equal the archive's.
            dimension: of the descriptors.
            max_size_mb: size limit. Beyond it, the least informative keyframes are dropped.
            read_only: refuse to write, and do not create a missing archive.

        Raises:
            PlacesError: of kind `archive_foreign`, `archive_old`, `archive_new`, `archive_space`, `archive_missing`,
                `archive_read_only`, `archive_full`, `archive_uri`, `archive_database` or `archive_failed`.
        """
        try:
            import lancedb
        except ImportError as error:
            message = (
                f"archive.uri is '{uri}', and an archive needs LanceDB, which cannot be imported ({error}): "
                f"{how_to_install('archive')}"
            )
            raise PlacesError("archive_database", message) from error
        place = _place(uri)
        with reported_errors(place, "opening"):
            if "://" not in place:
                _check_folder(Path(place), read_only)
            session = lancedb.Session(_INDEX_CACHE, _METADATA_CACHE)
            # Zero: each call sees everything that others have written so far.
            database = lancedb.connect(place, read_consistency_interval=timedelta(0), session=session)
            files: Files = BucketFiles(place) if "://" in place else FolderFiles(Path(place))
            table = _open_table(database, place, schema(space, dimension), read_only)
            _check_kind(table, place, space, dimension)
            leases = None if read_only else _open_leases(database)
            return cls(place, table, leases, files, max_size_mb, read_only)

    def add(self, keyframe: ArchivedKeyframe) -> None:
        """Store a keyframe durably. It replaces one of the same name.

        Raises:
            PlacesError: it cannot be written (`archive_full`, `archive_read_only`, `archive_failed`).
        """
        self.add_all([keyframe])

    def add_all(self, keyframes: Sequence[ArchivedKeyframe]) -> None:
        """Store several keyframes: all of them, or none if this raises.

        Raises:
            PlacesError: as for `add`.
            ValueError: a descriptor has another dimension or is not finite, or a name occurs twice.
        """
        self._check_writable()
        if not keyframes:
            return
        for keyframe in keyframes:
            self._check_descriptor(keyframe.descriptor)
        names = [keyframe.name for keyframe in keyframes]
        if len(set(names)) != len(names):
            raise ValueError("two of the keyframes have the same name")
        with self._writing, reported_errors(self._uri, "writing"):
            written: list[str] = []
            try:
                rows = [self._with_file(keyframe, written) for keyframe in keyframes]
                replaced = self._rows(named(names), ["file"])
                table = to_table(rows, self._table.schema)
                if replaced:
                    self._table.merge_insert(
                        ["robot", "id"]
                    ).when_matched_update_all().when_not_matched_insert_all().execute(table)
                else:
                    self._table.add(table)
            except BaseException:
                self._files.delete(written)
                raise
            self._files.sync(f"{TABLE}.lance")
            self._files.delete(row["file"] for row in replaced if row["file"])
        self._maintenance.added(sum(row["image_bytes"] + row["depth_bytes"] for row in rows), len(rows))

    def search(
        self, descriptor: NDArray[np.float32], count: int, leave_out: RecentPast | None = None
    ) -> list[Candidate]:
        """Return the keyframes with the nearest descriptors.

        Args:
            descriptor: (D,) float32.
            count: number of keyframes, at most.
            leave_out: keyframes to skip. They do not count towards `count`.

        Returns:
            best first.
        """
        self._check_descriptor(descriptor)
        if count < 1:
            return []

        def find() -> list[Candidate]:
            query = self._table.search(np.asarray(descriptor, np.float32), vector_column_name="descriptor")
            query = self._maintenance.tuned(query.distance_type("cosine")).select([*CANDIDATE_COLUMNS, "_distance"])
            if leave_out is not None:
                recent = f"session = {int(leave_out.session)} AND stamp_ns > {int(leave_out.after_ns)}"
                query = query.where(f"NOT ({robot_is(leave_out.robot)} AND {recent})", prefilter=True)
            return [to_candidate(row) for row in query.limit(count).to_arrow().to_pylist()]

        with reported_errors(self._uri, "searching"):
            return self._again(find)

    def get(self, name: KeyframeName) -> ArchivedKeyframe | None:
        """Return a keyframe with its image and depth; None if there is no keyframe of that name.

        Raises:
            PlacesError: its file is missing or damaged.
        """
        found = self._get_all([name])
        return found[0] if found else None

    def names(self, robot: str | None = None) -> list[KeyframeName]:
        """Names of all keyframes, or of one robot's, grouped by robot and in recording order."""
        rows = self._read_rows(None if robot is None else robot_is(robot), ["robot", "session", "id"])
        return [to_name(row) for row in sorted(rows, key=_in_chain)]

    def last_id(self, robot: str) -> int:
        """The largest id of a robot's keyframes; 0 without any."""
        return max((row["id"] for row in self._read_rows(robot_is(robot), ["id"])), default=0)

    def last_session(self, robot: str) -> int:
        """The largest session number of a robot's keyframes; 0 without any."""
        return max((row["session"] for row in self._read_rows(robot_is(robot), ["session"])), default=0)

    def descriptors(self, names: Sequence[KeyframeName] | None = None) -> Iterator[ArchivedKeyframe]:
        """Keyframes without images and depths: the named ones or all, ordered as by `names`."""
        names = self.names() if names is None else names
        for start in range(0, len(names), 1024):
            rows = self._read_rows(named(names[start : start + 1024]), None)
            yield from (to_keyframe(row, b"") for row in sorted(rows, key=_in_chain))

    def save(self, path: str) -> int:
        """Copy all keyframes into a new archive.

        Args:
            path: a missing or empty folder, or an address.

        Returns:
            Number of keyframes.

        Raises:
            PlacesError: the place is not empty (`archive_exists`), or cannot be written.
        """
        space, dimension = self._kind()
        with Archive.open(path, space, dimension, max_size_mb=float("inf")) as copy, self._maintenance.paused():
            if copy.uri == self._uri or len(copy):
                raise PlacesError("archive_exists", f"'{path}' is an archive already; save to an empty place")
            return copy._take(self, self.names())

    def load(self, uri: str) -> int:
        """Import the keyframes of another archive. Existing keyframes stay unchanged, but a missing image is filled in.

        Returns:
            Number of imported keyframes.

        Raises:
            PlacesError: the other archive is of another space, or has keyframes of the same name with another stamp
                (`archive_conflict`). Nothing is imported then.
        """
        self._check_writable()
        space, dimension = self._kind()
        columns = ["robot", "session", "id", "stamp_ns", "image_bytes"]
        with Archive.open(uri, space, dimension, read_only=True) as other:
            here = {to_name(row): row for row in self._read_rows(None, columns)}
            fresh = []
            for row in sorted(other._read_rows(None, columns), key=_in_chain):
                name = to_name(row)
                mine = here.get(name)
                if mine is not None and mine["stamp_ns"] != row["stamp_ns"]:
                    raise PlacesError(
                        "archive_conflict",
                        f"keyframe {name} has stamp {row['stamp_ns']} ns in '{uri}' and {mine['stamp_ns']} ns in "
                        f"'{self._uri}': two robots share a name, or one restarted its numbering. Nothing was imported"
                        ". Give the robots different names",
                    )
                if mine is None or (row["image_bytes"] and not mine["image_bytes"]):
                    fresh.append(name)
            return self._take(other, fresh)

    def __len__(self) -> int:
        with reported_errors(self._uri, "reading"):
            return self._again(lambda: int(self._table.count_rows()))

    @property
    def uri(self) -> str:
        """The archive's place."""
        return self._uri

    @property
    def dimension(self) -> int:
        """Length of a descriptor."""
        return self._kind()[1]

    @property
    def size_bytes(self) -> int:
        """Size of the whole archive in bytes, including old versions that are still kept."""
        with reported_errors(self._uri, "reading"):
            return self._maintenance.measure()

    @property
    def is_read_only(self) -> bool:
        """Whether it was opened read-only."""
        return self._read_only

    def tidy(self) -> None:
        """Run the maintenance now and wait for it."""
        self._check_writable()
        self._maintenance.run()

    def close(self) -> None:
        """Wait for the maintenance to end. Do not use the archive afterwards. Added keyframes are durable without this
        call.
        """
        self._maintenance.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, other: Archive, names: Sequence[KeyframeName]) -> int:
        taken = 0
        for start in range(0, len(names), _BATCH):
            batch = other._get_all(names[start : start + _BATCH])
            self.add_all(batch)
            taken += len(batch)
        return taken

    def _get_all(self, names: Sequence[KeyframeName]) -> list[ArchivedKeyframe]:
        def read() -> list[ArchivedKeyframe]:
            rows = sorted(self._rows(named(names), None), key=_in_chain)
            return [to_keyframe(row, self._files.read(row["file"]) if row["file"] else b"") for row in rows]

        with reported_errors(self._uri, "reading"):
            try:
                return self._again(read)
            except FileNotFoundError as error:
                message = f"an image in the archive '{self._uri}' is missing: {error}"
                raise PlacesError("image_missing", message) from error

    def _with_file(self, keyframe: ArchivedKeyframe, written: list[str]) -> dict[str, Any]:
        """Return a keyframe's row after writing its file."""
        depth = b"" if keyframe.depth is None else pack_depth(keyframe.depth)
        if not keyframe.image and not depth:
            return to_row(keyframe, "", 0)
        file = file_name(keyframe)
        self._files.write(file, keyframe.image + depth)
        written.append(file)
        return to_row(keyframe, file, len(depth))

    def _rows(self, where: str | None, columns: list[str] | None) -> list[dict[str, Any]]:
        query = self._table.search()
        if where is not None:
            query = query.where(where)
        if columns is not None:
            query = query.select(columns)
        rows: list[dict[str, Any]] = query.to_arrow().to_pylist()
        return rows

    def _read_rows(self, where: str | None, columns: list[str] | None) -> list[dict[str, Any]]:
        with reported_errors(self._uri, "reading"):
            return self._again(lambda: self._rows(where, columns))

    def _again(self, read: Callable[[], T]) -> T:
        """Retry once: another process may have deleted the version that the first attempt read."""
        try:
            return read()
        except (OSError, RuntimeError, ValueError):
            return read()

    def _kind(self) -> tuple[str, int]:
        metadata = self._table.schema.metadata
        return metadata[b"loftr_ros.space"].decode(), int(metadata[b"loftr_ros.dimension"])

    def _check_writable(self) -> None:
        if self._read_only:
            raise PlacesError("archive_read_only", f"the archive '{self._uri}' is opened read-only")

    def _check_descriptor(self, descriptor: NDArray[np.float32]) -> None:
        dimension = self._kind()[1]
        if descriptor.shape != (dimension,) or not np.isfinite(descriptor).all():
            raise ValueError(f"a descriptor of shape {descriptor.shape}; expected ({dimension},), finite")


def _in_chain(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["robot"], row["session"], row["id"]


def _place(uri: str) -> str:
    if "://" not in uri:
        return str(Path(uri).expanduser().absolute())
    if not uri.startswith("s3://"):
        message = f"'{uri}' is not a valid place for an archive; expected a folder or s3://bucket/folder"
        raise PlacesError("archive_uri", message)
    return uri.rstrip("/")


def _check_folder(folder: Path, read_only: bool) -> None:
    """Create the folder if it is missing; refuse a folder of something else."""
    if folder.exists() and not folder.is_dir():
        raise PlacesError("archive_foreign", f"'{folder}' is a file; expected a folder for the archive")
    if read_only and not folder.is_dir():
        raise _missing(str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / f"{TABLE}.lance").is_dir():
        message = f"'{folder}' is not empty and not an archive of keyframes. Name another folder; nothing was changed"
        raise PlacesError("archive_foreign", message)
    for link in links(folder, (f"{TABLE}.lance", f"{LEASES}.lance", IMAGES)):
        raise PlacesError(
            "archive_foreign",
            f"'{link}' is a link out of the archive '{folder}', which is not followed. Put the "
            "files themselves into the archive, or use another archive",
        )
    if not read_only:
        with tempfile.TemporaryFile(dir=folder):
            pass  # fail now instead of at the first write


def _missing(place: str) -> PlacesError:
    return PlacesError("archive_missing", f"there is no archive of keyframes at '{place}'")


def _open_table(database: Any, place: str, layout: Any, read_only: bool) -> Any:
    try:
        return database.open_table(TABLE)
    except (ValueError, FileNotFoundError) as error:
        if "not found" not in str(error):
            raise
        if read_only:
            raise _missing(place) from error
    try:
        return database.create_table(TABLE, schema=layout)
    except ValueError as error:
        # Another process has created it in the meantime.
        if "already exists" not in str(error):
            raise
        return database.open_table(TABLE)


def _open_leases(database: Any) -> Any:
    import pyarrow as pa

    try:
        return database.create_table(LEASES, pa.table({"holder": [""], "until_ns": [0]}))
    except ValueError as error:
        if "already exists" not in str(error):
            raise
        return database.open_table(LEASES)


def _check_kind(table: Any, place: str, space: str, dimension: int) -> None:
    metadata = table.schema.metadata or {}
    stored_format = metadata.get(b"loftr_ros.archive")
    if stored_format is None:
        raise PlacesError(
            "archive_foreign", f"the table at '{place}' is not an archive of keyframes; name another place"
        )
    if int(stored_format) != FORMAT:
        kind, what = ("archive_old", "an older") if int(stored_format) < FORMAT else ("archive_new", "a newer")
        raise PlacesError(
            kind,
            f"the archive '{place}' is of {what} format ({int(stored_format)}; this program has {FORMAT}). Use the "
            "program that made it, or name another place",
        )
    theirs = metadata[b"loftr_ros.space"].decode(), int(metadata[b"loftr_ros.dimension"])
    if theirs != (space, dimension):
        raise PlacesError(
            "archive_space",
            f"the archive '{place}' has descriptors of '{theirs[0]}' ({theirs[1]} numbers), but this program uses "
            f"'{space}' "
            f"({dimension}): they come from other weights or another network. Use those, or name another place",
        )
