"""A recording through the front end into rerun: where it is shown, how it is arranged, and the loop over its frames."""

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

from loftr_ros.frontend.mask import MaskError
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.recordings import Source, SourceError
from loftr_ros.recordings.progress import Progress, first_reasons
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.view import ViewLog

_INSTALL = "install it with `pip install loftr_ros[view]`"
_PORT = 9876  # that viewers listen on
_PATIENCE = 3.0  # seconds


class ViewError(RuntimeError):
    """There is nothing to show with, or nowhere to show it; the message says what to do."""


def load_rerun() -> ModuleType:
    """The module `rerun` of rerun-sdk.

    Raises:
        ViewError: it is not installed, or too old.
    """
    try:
        rerun = importlib.import_module("rerun")  # by its name: types are checked without it too
    except ImportError as error:
        raise ViewError(f"rerun is not installed ({error}); {_INSTALL}") from error
    if not hasattr(rerun, "set_time"):  # before 0.23; and another package of this name has not got it either
        raise ViewError(f"the module rerun is not rerun-sdk 0.23 or newer; {_INSTALL}")
    return rerun


@dataclass(frozen=True)
class Destination:
    """Where a recording is shown: in a file, in a viewer that runs already, or, without both, in a new window.

    Attributes:
        file: to write, ending in .rrd.
        address: of the viewer: HOST, HOST:PORT or a URL (`rerun+http://HOST:PORT/proxy`); empty for none.

    Raises:
        ViewError: both are given, or one is not what it should be.
    """

    file: Path | None = None
    address: str = ""

    def __post_init__(self) -> None:
        if self.file is not None and self.address:
            raise ViewError("a recording is either written to a file or shown in a viewer; give one of the two")
        if self.file is not None and self.file.suffix != ".rrd":
            raise ViewError(f"{self.file} does not end in .rrd, by which viewers know their recordings")
        if self.address:
            try:
                parts = urlsplit(self.url)
                understood = bool(parts.hostname) and parts.port != 0  # a port that is no number raises
            except ValueError:
                understood = False
            if not understood:
                raise ViewError(f"address '{self.address}' is not understood; expected HOST, HOST:PORT or a URL")

    @property
    def url(self) -> str:
        """The viewer's."""
        if "://" in self.address:
            return self.address
        return f"rerun+http://{self.address}{'' if ':' in self.address else f':{_PORT}'}/proxy"

    def check(self) -> None:
        """See whether it is there, before anything that takes long.

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
        """A new `rerun.RecordingStream` that goes there; whoever asked for it disconnects it.

        Raises:
            ViewError: the viewer does not start, or what `check` looks for came to be wrong since.
        """
        # One of its own: the module's default recording may be another's.
        stream, arranged = rerun.RecordingStream("loftr_ros"), layout(rerun)
        try:
            if self.file is not None:
                stream.save(self.file, default_blueprint=arranged)
            elif self.address:
                stream.connect_grpc(self.url, default_blueprint=arranged)
            else:
                with _scripts_on_path():
                    stream.spawn(default_blueprint=arranged)
        except RuntimeError as error:  # rerun's for all that fails, with advice of many lines
            reason = str(error).partition("\n")[0]
            raise ViewError(f"nothing can be shown in {self.file or self.address or 'a window'}: {reason}") from error
        # A viewer that cannot open its window ends by itself, and what is sent to it is lost without an error.
        if self.file is None and not self.address and (silent := unreachable("127.0.0.1", _PORT)):
            stream.disconnect()
            raise ViewError(f"the viewer's window did not open ({silent}); use --save FILE.rrd or --connect ADDRESS")
        return stream


def unreachable(host: str, port: int) -> OSError | None:
    """Why nothing answers there; None where something does."""
    try:
        socket.create_connection((host, port), _PATIENCE).close()
    except OSError as error:
        return error
    return None


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Lets rerun find its viewer, which pip puts beside this Python, where that environment is not activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _has_display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def layout(rerun: ModuleType) -> Any:
    """How the viewer arranges it: the two images over the plots, the trajectory beside them."""
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
    """What was shown.

    Attributes:
        frames: processed.
        located: those of them whose place is known.
        keyframes: that came.
        refused: frames that could not be read or contradicted the stream, with the reason.
        notes: what people should know of how the source was read.
        progress: how far it came.
    """

    frames: int = 0
    located: int = 0
    keyframes: int = 0
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    @property
    def missing(self) -> list[str]:
        """What keeps this from being all of the recording; empty of a whole one."""
        return self.progress.missing(self.refused, self.notes)

    def lines(self) -> list[str]:
        """For people."""
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
    """Feed every frame of a source to the front end and log what it finds.

    Args:
        source: the recording.
        front_end: a fresh one.
        log: to log to.
        reader: makes frames by the node's parameters; None for its defaults.
        progress: show a progress bar.

    Raises:
        SourceError: the source has not what the front end's mode needs, or not a single frame could be read.
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
        raise SourceError(f"{source.name}: not a single frame could be processed: {'; '.join(viewed.refused[:3])}")
    return viewed
