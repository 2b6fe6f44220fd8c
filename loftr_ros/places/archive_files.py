"""Storage of an archive's images: one file per keyframe, in a folder or a bucket, written once and never changed."""

from __future__ import annotations

import os
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import quote

from loftr_ros.places.keyframe import ArchivedKeyframe, PlacesError
from loftr_ros.wording import shortened

IMAGES = "images"
_LARGEST = 1 << 28  # maximum bytes of an image


class Files(Protocol):
    """Files of the archive, addressed by relative paths with slashes."""

    def write(self, path: str, data: bytes) -> None:
        """Write a new file durably and atomically."""

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, if they are there."""

    def size(self, folder: str) -> int:
        """Bytes of all files below a folder."""

    def older(self, folder: str, seconds: float) -> list[str]:
        """Files below a folder that were last written at least so many seconds ago."""

    def sync(self, folder: str) -> None:
        """Flush the database's files below a folder to the disk."""


class FolderFiles:
    """Files in a local or mounted folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._synced: dict[str, set[str]] = {}

    def _at(self, path: str) -> Path:
        """Absolute path of a file of the archive.

        The table may come from somebody else and name any file, and a link in the folder may lead anywhere.

        Raises:
            PlacesError: the path leads out of the archive.
        """
        target = self._root / inside(path)
        if not target.parent.resolve().is_relative_to(self._root.resolve()):
            raise _outside(path)
        return target

    def write(self, path: str, data: bytes) -> None:
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        passing = target.with_name(target.name + ".part")
        try:
            with passing.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            passing.rename(target)
        except OSError:
            with suppress(OSError):
                passing.unlink()
            raise
        _sync(target.parent)

    def read(self, path: str) -> bytes:
        target = self._at(path)
        # A link leads elsewhere, a pipe blocks, and an oversized file fills the memory.
        found = target.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            raise _outside(path)
        return target.read_bytes()

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._at(path).unlink(missing_ok=True)

    def size(self, folder: str) -> int:
        return sum(found.st_size for _, found in _walk(self._root / folder))

    def older(self, folder: str, seconds: float) -> list[str]:
        limit = time.time() - seconds
        found = (path for path, info in _walk(self._root / folder) if info.st_mtime < limit)
        return [path.relative_to(self._root).as_posix() for path in found]

    def sync(self, folder: str) -> None:
        # LanceDB leaves flushing to the system, which takes up to half a minute.
        for parent in (self._root / folder / name for name in ("data", "_deletions", "_transactions", "_versions")):
            with suppress(FileNotFoundError):
                names = {path.name for path in parent.iterdir()}
                fresh = names - self._synced.get(str(parent), set())
                for name in fresh:
                    with suppress(FileNotFoundError):
                        _sync(parent / name)
                if fresh:
                    _sync(parent)
                self._synced[str(parent)] = names


class BucketFiles:
    """Files in a bucket of an object store, whose writes are atomic and durable."""

    def __init__(self, uri: str) -> None:
        from pyarrow import fs

        self._store: Any
        self._store, self._root = fs.FileSystem.from_uri(uri)

    def write(self, path: str, data: bytes) -> None:
        with self._store.open_output_stream(f"{self._root}/{inside(path)}") as stream:
            stream.write(data)

    def read(self, path: str) -> bytes:
        with self._store.open_input_file(f"{self._root}/{inside(path)}") as stream:
            return bytes(stream.read())

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                self._store.delete_file(f"{self._root}/{inside(path)}")

    def size(self, folder: str) -> int:
        return sum(info.size or 0 for info in self._infos(folder))

    def older(self, folder: str, seconds: float) -> list[str]:
        limit = time.time() - seconds
        infos = (info for info in self._infos(folder) if info.is_file and info.mtime.timestamp() < limit)
        return [info.path.removeprefix(f"{self._root}/") for info in infos]

    def _infos(self, folder: str) -> list[Any]:
        from pyarrow import fs

        selector = fs.FileSelector(f"{self._root}/{folder}", recursive=True, allow_not_found=True)
        return list(self._store.get_file_info(selector))

    def sync(self, folder: str) -> None:
        pass


def inside(path: str) -> str:
    """Return the relative path after checking that it stays inside the archive.

    Raises:
        PlacesError: it is absolute or leads outside.
    """
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\0" in path or "\\" in path:
        raise _outside(path)
    return path


def _outside(path: str) -> PlacesError:
    return PlacesError(
        "archive_foreign",
        f"the archive names the file '{path[:200]}', which is outside of it. Somebody changed it, or it is not an "
        "archive of keyframes. Use another one",
    )


def file_name(keyframe: ArchivedKeyframe) -> str:
    """A new file name for a keyframe. Names are never reused, because readers may still read the old file."""
    kind = "jpg" if keyframe.image[:2] == b"\xff\xd8" else "png" if keyframe.image[:4] == b"\x89PNG" else "bin"
    robot = quote(keyframe.name.robot, safe="").replace(".", "%2E")[:100]
    return f"{IMAGES}/{robot or '_'}/{keyframe.name.id}-{uuid.uuid4().hex[:12]}.{kind}"


@contextmanager
def reported_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn any error of the database or the file system into a PlacesError that says where it happened and what to
    do.
    """
    try:
        yield
    except PlacesError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if re.search(r"no space left|os error 28\b|os error 27\b|file too large|quota exceeded|errno 28\b", text, re.I):
            message = f"the archive '{uri}' cannot be written: the disk is full. Free some space, or lower its max_size"
            raise PlacesError("archive_full", message) from error
        if re.search(r"read-only file|permission denied|os error (13|30)\b|access ?denied|forbidden", text, re.I):
            message = (
                f"{doing} the archive '{uri}' is not permitted: {shortened(text, 200)}. Give this user access, or name "
                "another uri"
            )
            raise PlacesError("archive_read_only", message) from error
        raise PlacesError("archive_failed", f"{doing} the archive '{uri}' failed: {shortened(text, 400)}") from error


def links(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Links among some folders of an archive and those of its tables. Images are checked when they are read."""
    for name in names:
        if (root / name).is_symlink():
            yield root / name
        elif name != IMAGES:
            yield from (path for path, found in _walk(root / name) if stat.S_ISLNK(found.st_mode))


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files below a folder. Some may vanish during the walk."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
