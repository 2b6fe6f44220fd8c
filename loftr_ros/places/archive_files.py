"""Where an archive's images lie: one file a keyframe, in a folder or a bucket, written once and never changed."""

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
_LARGEST = 1 << 28  # bytes of an image


class Files(Protocol):
    """Files below the archive's place, by relative paths with slashes."""

    def write(self, path: str, data: bytes) -> None:
        """Write a new file, durably: it is there whole or not at all."""

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, if they are there."""

    def size(self, folder: str) -> int:
        """Bytes of all files below a folder."""

    def older(self, folder: str, seconds: float) -> list[str]:
        """Files below a folder that were last written so long ago."""

    def sync(self, folder: str) -> None:
        """Bring what the database has written below a folder to the disk itself."""


class FolderFiles:
    """In a folder of this machine, or one that it mounts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._synced: dict[str, set[str]] = {}

    def _at(self, path: str) -> Path:
        """Where a file of the archive is.

        A table that somebody else has written may name any file, and a link in the folder may lead anywhere.

        Raises:
            PlacesError: outside of the archive.
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
        # A link leads elsewhere, a pipe would be waited for, and what is larger than any image fills the memory.
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
        # LanceDB leaves this to the system, which takes up to half a minute.
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
    """In a bucket of an object store, whose writes are whole and durable by themselves."""

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
    """The same relative path, which leads out of nothing.

    Raises:
        PlacesError: it does, or it is absolute.
    """
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\0" in path or "\\" in path:
        raise _outside(path)
    return path


def _outside(path: str) -> PlacesError:
    return PlacesError(
        "archive_foreign",
        f"the archive names the file '{path[:200]}', which is not in it; it was changed by somebody, or is no archive "
        "of keyframes: use another one",
    )


def file_name(keyframe: ArchivedKeyframe) -> str:
    """A new name for the file of a keyframe; never one that was there, since readers may still read that."""
    kind = "jpg" if keyframe.image[:2] == b"\xff\xd8" else "png" if keyframe.image[:4] == b"\x89PNG" else "bin"
    robot = quote(keyframe.name.robot, safe="").replace(".", "%2E")[:100]
    return f"{IMAGES}/{robot or '_'}/{keyframe.name.id}-{uuid.uuid4().hex[:12]}.{kind}"


@contextmanager
def reported_errors(uri: str, doing: str) -> Iterator[None]:
    """Whatever the database or the file system raises, as an error that says where and what to do."""
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
                f"{doing} the archive '{uri}' is not allowed: {shortened(text, 200)}. Give this user the right, or "
                "another uri"
            )
            raise PlacesError("archive_read_only", message) from error
        raise PlacesError("archive_failed", f"{doing} the archive '{uri}' failed: {shortened(text, 400)}") from error


def links(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Links among some folders of an archive, and in those of its tables; images are looked at when they are read."""
    for name in names:
        if (root / name).is_symlink():
            yield root / name
        elif name != IMAGES:
            yield from (path for path, found in _walk(root / name) if stat.S_ISLNK(found.st_mode))


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files below a folder, of which some may vanish meanwhile."""
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
