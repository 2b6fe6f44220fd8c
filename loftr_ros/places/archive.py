"""An archive of keyframes on disk or in an object store: what is where is found again by descriptors.

It stands on LanceDB, whose table holds everything but the images; `docs/archive.md` says why, and what it costs.
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
from loftr_ros.places.archive_files import IMAGES, BucketFiles, Files, FolderFiles, file_name, links, told
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
from loftr_ros.places.archive_upkeep import Upkeep
from loftr_ros.places.keyframe import ArchivedKeyframe, Candidate, KeyframeName, PlacesError, RecentPast

TABLE, TURNS = "keyframes", "turns"

# Keyframes that are copied in one commit from archive to archive; with their images they must fit into memory.
_BATCH = 64
# LanceDB's own bounds for these are gigabytes.
_INDEX_CACHE = 256 << 20
_METADATA_CACHE = 64 << 20


T = TypeVar("T")


class Archive:
    """Keyframes that are kept for good.

    One thread may write while another reads; so may other processes, and other robots where they share the place.
    """

    def __init__(self, uri: str, table: Any, turns: Any, files: Files, max_size_mb: float, read_only: bool) -> None:
        """Use `Archive.open`."""
        self._uri = uri
        self._table = table
        self._files = files
        self._read_only = read_only
        self._writing = threading.RLock()
        self._upkeep = Upkeep(uri, table, turns, files, max_size_mb, self._writing)

    @classmethod
    def open(
        cls, uri: str, space: str, dimension: int, *, max_size_mb: float = 2000.0, read_only: bool = False
    ) -> Archive:
        """Open an archive, or make it where nothing is.

        Args:
            uri: a folder, or s3://bucket/folder (credentials and endpoint in the usual AWS_* variables).
            space: name of the space of descriptors, which must be the archive's.
            dimension: of the descriptors.
            max_size_mb: size that the least telling keyframes are dropped at.
            read_only: refuse to write, and do not make an archive where nothing is.

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
        with told(place, "opening"):
            if "://" not in place:
                _check_folder(Path(place), read_only)
            session = lancedb.Session(_INDEX_CACHE, _METADATA_CACHE)
            # Zero: each call sees what others have written until then.
            database = lancedb.connect(place, read_consistency_interval=timedelta(0), session=session)
            files: Files = BucketFiles(place) if "://" in place else FolderFiles(Path(place))
            table = _open_table(database, place, schema(space, dimension), read_only)
            _check_kind(table, place, space, dimension)
            turns = None if read_only else _open_turns(database)
            return cls(place, table, turns, files, max_size_mb, read_only)

    def add(self, keyframe: ArchivedKeyframe) -> None:
        """Keep a keyframe; it is there for good once this returns. One of the same name is replaced.

        Raises:
            PlacesError: it cannot be written (`archive_full`, `archive_read_only`, `archive_failed`).
        """
        self.add_all([keyframe])

    def add_all(self, keyframes: Sequence[ArchivedKeyframe]) -> None:
        """Keep several keyframes: all of them, or none where this raises.

        Raises:
            PlacesError: as for `add`.
            ValueError: a descriptor has another dimension or is not finite, or a name is there twice.
        """
        self._check_writable()
        if not keyframes:
            return
        for keyframe in keyframes:
            self._check_descriptor(keyframe.descriptor)
        names = [keyframe.name for keyframe in keyframes]
        if len(set(names)) != len(names):
            raise ValueError("two of the keyframes have the same name")
        with self._writing, told(self._uri, "writing"):
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
        self._upkeep.added(sum(row["image_bytes"] + row["depth_bytes"] for row in rows), len(rows))

    def search(
        self, descriptor: NDArray[np.float32], count: int, leave_out: RecentPast | None = None
    ) -> list[Candidate]:
        """The keyframes whose descriptors are nearest to one.

        Args:
            descriptor: (D,) float32.
            count: of keyframes, at most.
            leave_out: which do not count; they do not take others' places.

        Returns:
            best first.
        """
        self._check_descriptor(descriptor)
        if count < 1:
            return []

        def find() -> list[Candidate]:
            query = self._table.search(np.asarray(descriptor, np.float32), vector_column_name="descriptor")
            query = self._upkeep.tuned(query.distance_type("cosine")).select([*CANDIDATE_COLUMNS, "_distance"])
            if leave_out is not None:
                recent = f"session = {int(leave_out.session)} AND stamp_ns > {int(leave_out.after_ns)}"
                query = query.where(f"NOT ({robot_is(leave_out.robot)} AND {recent})", prefilter=True)
            return [to_candidate(row) for row in query.limit(count).to_arrow().to_pylist()]

        with told(self._uri, "searching"):
            return self._again(find)

    def get(self, name: KeyframeName) -> ArchivedKeyframe | None:
        """A keyframe by name, with its image and depth; None if it is not there.

        Raises:
            PlacesError: its file is missing or damaged.
        """
        found = self._get_all([name])
        return found[0] if found else None

    def names(self, robot: str | None = None) -> list[KeyframeName]:
        """Of all keyframes, or of one robot's: robot by robot, in the order that they were seen in."""
        rows = self._told_rows(None if robot is None else robot_is(robot), ["robot", "session", "id"])
        return [to_name(row) for row in sorted(rows, key=_in_chain)]

    def last_id(self, robot: str) -> int:
        """The largest id of a robot's keyframes; 0 without any."""
        return max((row["id"] for row in self._told_rows(robot_is(robot), ["id"])), default=0)

    def last_session(self, robot: str) -> int:
        """The largest session of a robot's keyframes; 0 without any."""
        return max((row["session"] for row in self._told_rows(robot_is(robot), ["session"])), default=0)

    def descriptors(self, names: Sequence[KeyframeName] | None = None) -> Iterator[ArchivedKeyframe]:
        """Keyframes without images and depths, those of a name or all; as `names` orders them."""
        names = self.names() if names is None else names
        for start in range(0, len(names), 1024):
            rows = self._told_rows(named(names[start : start + 1024]), None)
            yield from (to_keyframe(row, b"") for row in sorted(rows, key=_in_chain))

    def save(self, path: str) -> int:
        """Copy all keyframes into a new archive.

        Args:
            path: where; a folder that is not there or is empty, or an address.

        Returns:
            Number of keyframes.

        Raises:
            PlacesError: something is there (`archive_exists`), or it cannot be written.
        """
        space, dimension = self._kind()
        with Archive.open(path, space, dimension, max_size_mb=float("inf")) as copy, self._upkeep.paused():
            if copy.uri == self._uri or len(copy):
                raise PlacesError("archive_exists", f"'{path}' is an archive already; save to an empty place")
            return copy._take(self, self.names())

    def load(self, uri: str) -> int:
        """Take over the keyframes of another archive; those that are here already are left as they are.

        Only an image that is here missing is taken over for a keyframe that is here.

        Returns:
            Number of keyframes that were taken over.

        Raises:
            PlacesError: the other is no archive of this space, or has keyframes of the same name but another stamp
                (`archive_conflict`); nothing is taken over then.
        """
        self._check_writable()
        space, dimension = self._kind()
        columns = ["robot", "session", "id", "stamp_ns", "image_bytes"]
        with Archive.open(uri, space, dimension, read_only=True) as other:
            here = {to_name(row): row for row in self._told_rows(None, columns)}
            fresh = []
            for row in sorted(other._told_rows(None, columns), key=_in_chain):
                name = to_name(row)
                mine = here.get(name)
                if mine is not None and mine["stamp_ns"] != row["stamp_ns"]:
                    raise PlacesError(
                        "archive_conflict",
                        f"keyframe {name} is of {row['stamp_ns']} ns in '{uri}' and of {mine['stamp_ns']} ns in "
                        f"'{self._uri}': two robots have the same name, or one has counted anew; nothing was taken "
                        "over. Name the robots apart",
                    )
                if mine is None or (row["image_bytes"] and not mine["image_bytes"]):
                    fresh.append(name)
            return self._take(other, fresh)

    def __len__(self) -> int:
        with told(self._uri, "reading"):
            return self._again(lambda: int(self._table.count_rows()))

    @property
    def uri(self) -> str:
        """Where it is."""
        return self._uri

    @property
    def dimension(self) -> int:
        """Numbers of a descriptor."""
        return self._kind()[1]

    @property
    def size_bytes(self) -> int:
        """Bytes of everything in it, older versions that are still kept included."""
        with told(self._uri, "reading"):
            return self._upkeep.measure()

    @property
    def is_read_only(self) -> bool:
        """Whether it was opened for reading alone."""
        return self._read_only

    def tidy(self) -> None:
        """Do now what upkeep does from time to time; takes as long as that takes."""
        self._check_writable()
        self._upkeep.run()

    def close(self) -> None:
        """Wait until its upkeep rests. It is not used afterwards; what was added is there without this too."""
        self._upkeep.close()

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

        with told(self._uri, "reading"):
            try:
                return self._again(read)
            except FileNotFoundError as error:
                message = f"an image in the archive '{self._uri}' is missing: {error}"
                raise PlacesError("image_missing", message) from error

    def _with_file(self, keyframe: ArchivedKeyframe, written: list[str]) -> dict[str, Any]:
        """A keyframe's row, its file having been written."""
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

    def _told_rows(self, where: str | None, columns: list[str] | None) -> list[dict[str, Any]]:
        with told(self._uri, "reading"):
            return self._again(lambda: self._rows(where, columns))

    def _again(self, read: Callable[[], T]) -> T:
        """Read once more where it fails: another process may have cleaned up what the first attempt was about."""
        try:
            return read()
        except (OSError, RuntimeError, ValueError):
            return read()

    def _kind(self) -> tuple[str, int]:
        metadata = self._table.schema.metadata
        return metadata[b"loftr_ros.space"].decode(), int(metadata[b"loftr_ros.dimension"])

    def _check_writable(self) -> None:
        if self._read_only:
            raise PlacesError("archive_read_only", f"the archive '{self._uri}' was opened for reading only")

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
        message = f"'{uri}' is no place for an archive; expected a folder or s3://bucket/folder"
        raise PlacesError("archive_uri", message)
    return uri.rstrip("/")


def _check_folder(folder: Path, read_only: bool) -> None:
    """Make the folder if it is not there; refuse one that is somebody else's."""
    if folder.exists() and not folder.is_dir():
        raise PlacesError("archive_foreign", f"'{folder}' is a file; expected a folder for the archive")
    if read_only and not folder.is_dir():
        raise _missing(str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / f"{TABLE}.lance").is_dir():
        message = (
            f"'{folder}' is no archive of keyframes, and not empty. Name another folder; nothing was changed in it"
        )
        raise PlacesError("archive_foreign", message)
    for link in links(folder, (f"{TABLE}.lance", f"{TURNS}.lance", IMAGES)):
        raise PlacesError(
            "archive_foreign",
            f"'{link}' is a link, which leads out of the archive '{folder}': nothing is read or written there. Put the "
            "files themselves there, or use another archive",
        )
    if not read_only:
        with tempfile.TemporaryFile(dir=folder):
            pass  # found out now, not in mid-flight


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
        # Another process has made it in between.
        if "already exists" not in str(error):
            raise
        return database.open_table(TABLE)


def _open_turns(database: Any) -> Any:
    import pyarrow as pa

    try:
        return database.create_table(TURNS, pa.table({"holder": [""], "until_ns": [0]}))
    except ValueError as error:
        if "already exists" not in str(error):
            raise
        return database.open_table(TURNS)


def _check_kind(table: Any, place: str, space: str, dimension: int) -> None:
    metadata = table.schema.metadata or {}
    told_format = metadata.get(b"loftr_ros.archive")
    if told_format is None:
        raise PlacesError("archive_foreign", f"the table at '{place}' is no archive of keyframes; name another place")
    if int(told_format) != FORMAT:
        kind, what = ("archive_old", "an older") if int(told_format) < FORMAT else ("archive_new", "a newer")
        raise PlacesError(
            kind,
            f"the archive '{place}' is of {what} format ({int(told_format)}; this program has {FORMAT}). Use the "
            "program that made it, or name another place",
        )
    theirs = metadata[b"loftr_ros.space"].decode(), int(metadata[b"loftr_ros.dimension"])
    if theirs != (space, dimension):
        raise PlacesError(
            "archive_space",
            f"the archive '{place}' has descriptors of '{theirs[0]}' ({theirs[1]} numbers), and this is '{space}' "
            f"({dimension}): other weights or another network made them. Use those, or name another place",
        )
