"""Download of published weights: several mirrors, resumable, renamed only after verification."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any

from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.weights.catalogue import Entry

_BLOCK = 1 << 17
_logger = logging.getLogger(__name__)


class _MirrorError(Exception):
    """One mirror did not deliver the file; the message says why."""


def get_weights(entry: Entry, output: Path | None = None, *, progress: bool = True, timeout: float = 30.0) -> Path:
    """Download a published weights file, unless it exists already.

    Data arrives in a file `.part` beside the target, and a later call resumes from it. It is renamed to the target once
    its SHA-256 (if one is published) and its contents are right.

    Args:
        entry: of the catalogue.
        output: the file to write, or its folder; None for its place in the cache.
        progress: whether to show a progress bar.
        timeout: of connecting and of every single wait for data, in seconds.

    Returns:
        The file.

    Raises:
        WeightsError: no mirror delivered the file, it must be downloaded by hand, or another file is in its place. The
            message gives the file, its place and its addresses.
    """
    target = output or entry.cache_path()
    if target.is_dir():
        target /= entry.file
    there = target if output else entry.cached() or target
    if there.exists():
        problem = _problem(there, entry, None)
        if problem:
            raise WeightsError(f"{there} exists, but is not '{entry.name}': {problem}. Move it away and try again")
        return there
    if not entry.urls:
        raise WeightsError(
            f"'{entry.name}' must be downloaded by hand: get {entry.file} from {entry.page}, and save it as {target}"
        )
    reasons = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target) as part:
            for url in entry.urls:
                try:
                    _from_mirror(url, entry, part, progress, timeout)
                    part.replace(target)
                    _origin_file(part).unlink(missing_ok=True)
                    return target
                except _MirrorError as error:
                    _logger.info("%s: %s", url, error)
                    reasons.append(f"  {url}: {error}")
    except OSError as error:
        raise WeightsError(f"{target} cannot be written: {error}") from error
    raise WeightsError(
        f"no mirror gave '{entry.name}':\n" + "\n".join(reasons) + f"\nTry again later (the partial file is kept), or "
        f"get {entry.file} on another machine from one of these addresses, or from {entry.page}, and save it as "
        f"{target}. `loftr_ros weights check` says whether a file is right"
    )


def _from_mirror(url: str, entry: Entry, part: Path, progress: bool, timeout: float) -> None:
    """Complete the partial file from one mirror and verify it.

    Raises:
        _MirrorError: the mirror does not answer, disconnects, or has another file.
    """
    resumed = part.stat().st_size > 0
    digest = _fetch(url, entry, part, progress, timeout)
    problem = _problem(part, entry, digest)
    if problem and resumed:
        # The data from before may have been wrong.
        _logger.warning("%s: %s; begins again", url, problem)
        _restart(part)
        digest = _fetch(url, entry, part, progress, timeout)
        problem = _problem(part, entry, digest)
    if problem:
        _restart(part)
        raise _MirrorError(problem)


def _fetch(url: str, entry: Entry, part: Path, progress: bool, timeout: float) -> str | None:
    """Download the missing part of the file; returns the SHA-256 published by the server, if any.

    Raises:
        _MirrorError: see `_from_mirror`.
    """
    from tqdm import tqdm

    origin = _read_origin(part)
    # Data of another source is reused only if a digest can verify it.
    if origin.get("url") != url and entry.sha256 is None:
        _restart(part)
    have = part.stat().st_size
    headers = {"User-Agent": "loftr_ros", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if origin.get("url") == url and origin.get("etag"):
            headers["If-Range"] = origin["etag"]
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            published = _published_digest(redirects.headers, answer.headers)
            start, total = _extent(answer.status, answer.headers, have)
            if entry.size and total and total != entry.size:
                raise _MirrorError(f"it has {total} bytes where {entry.size} are expected")
            if start == 0:
                _restart(part)
            _origin_file(part).write_text(json.dumps({"url": url, "etag": _strong_etag(answer.headers)}))
            with (
                part.open("ab") as file,
                tqdm(
                    desc=entry.name,
                    total=total,
                    initial=start,
                    unit="B",
                    unit_scale=True,
                    disable=None if progress else True,
                ) as bar,
            ):
                _copy(answer, file, bar)
    except urllib.error.HTTPError as error:
        with error:
            # The partial file may be complete already, so nothing is left to send.
            if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
                return _published_digest(redirects.headers)
            if error.code == 416:
                _restart(part)
            raise _MirrorError(f"the server answered {error.code} {error.reason}") from error
    except (TimeoutError, urllib.error.URLError, HTTPException, ConnectionError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error
        raise _MirrorError(f"{reason or type(error).__name__}{_so_far(part, None)}") from error
    if total is not None and part.stat().st_size != total:
        raise _MirrorError(f"the transfer broke off{_so_far(part, total)}")
    return published


def _copy(answer: IO[bytes], file: IO[bytes], bar: Any) -> None:
    while block := answer.read(_BLOCK):
        file.write(block)
        bar.update(len(block))


def _extent(status: int, headers: HTTPMessage, have: int) -> tuple[int, int | None]:
    """Offset of the answer in the file, and length of the whole file if the server gives it.

    Raises:
        _MirrorError: the answer does not match the request.
    """
    if status == 206:
        matched = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
        if not matched or int(matched[1]) != have:
            raise _MirrorError(
                f"asked for what follows byte {have}, the server sent '{headers.get('Content-Range', '')}'"
            )
        return have, None if matched[3] == "*" else int(matched[3])
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _problem(path: Path, entry: Entry, published: str | None) -> str:
    """Why a file is not the weights of an entry; empty if it is."""
    # Imported here, because it loads torch, which the command line otherwise does not need.
    from loftr_ros.matcher.checkpoints.files import check_weights, preset, read_weights, sha256_of

    expected = entry.sha256 or published
    if expected and (found := sha256_of(path)) != expected:
        return f"its SHA-256 is {found}, but {expected} is published"
    try:
        check_weights(preset(entry.network), read_weights(path))
    except WeightsError as error:
        return str(error)
    return ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps their headers."""

    def __init__(self) -> None:
        self.headers = HTTPMessage()

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        for name, value in headers.items():
            self.headers[name] = value
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _published_digest(*headers: HTTPMessage) -> str | None:
    """The SHA-256 that Hugging Face sends with the redirect to a large file."""
    for each in headers:
        value = each.get("X-Linked-ETag", "").strip('"').lower()
        if re.fullmatch(r"[0-9a-f]{64}", value):
            return value
    return None


def _strong_etag(headers: HTTPMessage) -> str:
    """The answer's ETag; empty if it is a weak one, which does not guarantee byte equality."""
    etag = headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag


@contextmanager
def _only_one(target: Path) -> Iterator[Path]:
    """The partial file of a target, locked for this process.

    Raises:
        WeightsError: another process has it.
    """
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WeightsError(f"another download to {target} is in progress") from None
        try:
            yield part
        finally:
            # An empty file would be useless.
            if part.exists() and not part.stat().st_size:
                part.unlink()
                _origin_file(part).unlink(missing_ok=True)


def _origin_file(part: Path) -> Path:
    """File that stores the origin of a partial file."""
    return part.with_name(f"{part.name}.json")


def _read_origin(part: Path) -> dict[str, str]:
    try:
        content = json.loads(_origin_file(part).read_text())
        return {str(name): str(value) for name, value in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _restart(part: Path) -> None:
    os.truncate(part, 0)
    _origin_file(part).unlink(missing_ok=True)


def _so_far(part: Path, total: int | None) -> str:
    have = part.stat().st_size
    if not have and total is None:
        return ""
    return f" after {have} bytes" + (f" of {total}" if total is not None else "")
