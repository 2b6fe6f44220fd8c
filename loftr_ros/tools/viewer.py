"""Shows a recording in rerun: the destination, the layout, and the loop over frames."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from loftr_ros.extras import how_to_install
from loftr_ros.frontend.mask import MaskError
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.recordings import Source, SourceError
from loftr_ros.recordings.progress import Progress, first_reasons
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.view import ViewLog

_INSTALL = f"install it: {how_to_install('view')}"
_PORT = 9876  # default port of viewers
_PATIENCE = 3.0  # seconds


class ViewError(RuntimeError):
    """Rerun or its destination is missing; the message says what to do."""


def load_rerun() -> ModuleType:
    """The module `rerun` of rerun-sdk.

    Raises:
        ViewError: it is not installed, or too old.
    """
    try:
        rerun = importlib.import_module("rerun")  # by its name: types are also checked without rerun
    except ImportError as error:
        raise ViewError(f"rerun is not installed ({error}); {_INSTALL}") from error
    if not hasattr(rerun, "set_time"):  # before 0.23, or another package of this name
        raise ViewError(f"the module rerun is not rerun-sdk 0.23 or newer; {_INSTALL}")
    return rerun


@dataclass(frozen=True)
class Destination:
    """Where a recording is shown: in a file, in a running viewer, or else in a new window.

    Attributes:
        file: to write, with the extension .rrd; None for no file.
        address: of the viewer: HOST, HOST:PORT or a URL (`rerun+http://HOST:PORT/proxy`); empty for none.

    Raises:
        ViewError: both are given, or one is invalid.
    """

    file: Path | None = None
    address: str = ""

    def __post_init__(self) -> None:
        if self.file is not None and self.address:
            raise ViewError(
                "a recording is either written to a file or shown in a viewer; use --save or --connect, not both"
            )
        if self.file is not None and self.file.suffix != ".rrd":
            raise ViewError(f"{self.file} does not end in .rrd, as viewers expect")
        if self.address:
            try:
                parts = urlsplit(self.url)
                understood = bool(parts.hostname) and parts.port != 0  # raises if the port is not a number
            except ValueError:
                understood = False
            if not understood:
                raise ViewError(f"address '{self.address}' is not understood; expected HOST, HOST:PORT or a URL")

    @property
    def url(self) -> str:
        """URL of the viewer."""
        if "://" in self.address:
            return self.address
        return f"rerun+http://{self.address}{'' if ':' in self.address else f':{_PORT}'}/proxy"

    def check(self) -> None:
        """Check that the destination exists, before anything that takes long.

        Raises:
            ViewError: the file cannot be written, no viewer answers, or there is no display for a window.
        """
        if self.file is not None:
            new = not self.file.exists()
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.open("ab").close()
            except OSError as error:
                raise ViewError(f"{self.file} cannot be written to: {error.strerror}") from error
            if new:
                self.file.unlink()
        if self.address:
            parts = urlsplit(self.url)
            if silent := unreachable(str(parts.hostname), parts.port or _PORT):
                raise ViewError(f"no viewer answers at {self.url} ({silent}); start `rerun` there")
        elif self.file is None and not _has_display():
            raise ViewError("there is no display to open a window on; use --save FILE.rrd or --connect ADDRESS")

    def open(self, rerun: ModuleType) -> Any:
        """A new `rerun.RecordingStream` to the destination; the caller disconnects it.

        Raises:
            ViewError: the viewer does not start, or the destination has become unusable since `check`.
        """
        # A separate recording: the module's default one may be in use.
        stream, arranged = rerun.RecordingStream("loftr_ros"), layout(rerun)
        try:
            if self.file is not None:
                stream.save(self.file, default_blueprint=arranged)
            elif self.address:
                stream.connect_grpc(self.url, default_blueprint=arranged)
            else:
                with _scripts_on_path():
                    stream.spawn(default_blueprint=arranged)
        except RuntimeError as error:  # rerun raises it for every failure, with many lines of advice
            reason = str(error).partition("\n")[0]
            raise ViewError(f"nothing can be shown in {self.file or self.address or 'a window'}: {reason}") from error
        # A viewer that cannot open its window exits, and data sent to it is lost without an error.
        if self.file is None and not self.address and (silent := unreachable("127.0.0.1", _PORT)):
            stream.disconnect()
            raise ViewError(f"the viewer's window did not open ({silent}); use --save FILE.rrd or --connect ADDRESS")
        return stream


def unreachable(host: str, port: int) -> OSError | None:
    """Why nothing answers at the address; None if something does."""
    try:
        socket.create_connection((host, port), _PATIENCE).close()
    except OSError as error:
        return error
    return None


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Let rerun find its viewer beside this Python if the environment is not activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _has_display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def layout(rerun: ModuleType) -> Any:
    """Layout of the viewer: the two images above the plots, the trajectory beside them."""
    make = rerun.blueprint
    return make.Blueprint(
        make.Horizontal(
            make.Vertical(
                make.Horizontal(
                    make.Spatial2DView(origin="current", name="current image"),
                    make.Spatial2DView(origin="keyframe", name="keyframe"),
                ),
                make.Tabs(
                    make.TimeSeriesView(origin="plots/matches", name="matches"),
                    make.TimeSeriesView(origin="plots/parallax_px", name="parallax [px]"),
                    make.TimeSeriesView(origin="plots/latency_ms", name="latency [ms]"),
                    make.TimeSeriesView(origin="plots/scale_std", name="scale std"),
                    make.TextLogView(origin="log", name="log"),
                    active_tab=0,
                ),
                row_shares=[3, 2],
            ),
            make.Spatial3DView(origin="world", name="trajectory"),
        ),
        make.SelectionPanel(state="collapsed"),
    )


@dataclass
class Viewed:
    """Results of a viewed recording.

    Attributes:
        frames: number of processed frames.
        located: number of frames with a known place.
        keyframes: number of keyframes.
        refused: reasons of the frames that could not be read or contradicted the stream.
        notes: for people, on how the source was read.
        progress: how far the recording was shown.
    """

    frames: int = 0
    located: int = 0
    keyframes: int = 0
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    @property
    def missing(self) -> list[str]:
        """Reasons why parts of the recording are missing; empty if it is complete."""
        return self.progress.missing(self.refused, self.notes)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        counts = f"{self.frames} frames, {self.located} of them located, {self.keyframes} keyframes"
        text = [f"{counts}, {len(self.refused)} frames refused"]
        return [*text, *first_reasons(self.refused), *(f"note: {note}" for note in self.notes)]


def show(
    source: Source,
    front_end: FrontEnd,
    log: ViewLog,
    *,
    reader: FrameReader | None = None,
    progress: bool = True,
) -> Viewed:
    """Process every frame of a source and log the results.

    Args:
        source: the recording.
        front_end: a fresh one.
        log: receives the results.
        reader: makes frames with the node's parameters; None for their defaults.
        progress: show a progress bar.

    Raises:
        SourceError: the source lacks what the front end's mode needs, or no frame could be read.
    """
    mode, reader = front_end.config.scale.mode, reader or FrameReader()
    source.require(mode)
    viewed = Viewed()
    with viewed.progress.watching():
        for frame in viewed.progress.frames(source, progress):
            try:
                taken = reader.read(frame, mode)
                picture = reader.picture(frame, taken)
                result = front_end.process(taken)
            except (FrameRefusedError, MaskError, SourceError) as error:
                viewed.refused.append(str(error))
                log.refuse(frame.index, frame.stamp_ns, str(error))
                continue
            log.add(result, frame.index, picture)
            viewed.frames += 1
            viewed.located += result.place is not None
            viewed.keyframes += sum(event.added for event in result.events)
    viewed.notes += source.notes
    if not viewed.frames and not viewed.progress.interrupted:
        raise SourceError(f"{source.name}: no frame could be processed: {'; '.join(viewed.refused[:3])}")
    return viewed
