"""A recording through the front end into rerun: where it is shown, how it is arranged, and the loop over its frames."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.mask import MaskError
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.sources import Source, SourceError
from loftr_ros.view import ViewLog, place

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
            ViewError: no viewer answers, or there is no display for a window.
        """
        if self.address:
            parts = urlsplit(self.url)
            try:
                socket.create_connection((str(parts.hostname), int(parts.port or _PORT)), _PATIENCE).close()
            except OSError as error:
                raise ViewError(f"no viewer answers at {self.url} ({error}); start `rerun` there") from error
        elif self.file is None and not _has_display():
            raise ViewError("there is no display to open a window on; use --save FILE.rrd or --connect ADDRESS")

    def open(self, rerun: ModuleType) -> Any:
        """A new `rerun.RecordingStream` that goes there; whoever asked for it disconnects it.

        Raises:
            ViewError: the file cannot be written, or the viewer cannot be started.
        """
        # One of its own: the module's default recording may be another's.
        stream, arranged = rerun.RecordingStream("loftr_ros"), layout(rerun)
        try:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                stream.save(self.file, default_blueprint=arranged)
            elif self.address:
                stream.connect_grpc(self.url, default_blueprint=arranged)
            else:
                stream.spawn(default_blueprint=arranged)
        except (OSError, RuntimeError) as error:
            raise ViewError(f"nothing can be shown in {self.file or self.address or 'a window'}: {error}") from error
        return stream


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
    """

    frames: int = 0
    located: int = 0
    keyframes: int = 0
    refused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        counts = f"{self.frames} frames, {self.located} of them located, {self.keyframes} keyframes"
        text = [f"{counts}, {len(self.refused)} frames refused"]
        return text + [f"  refused: {reason}" for reason in self.refused[:3]]


def show(
    source: Source,
    front_end: FrontEnd,
    log: ViewLog,
    *,
    mask: NDArray[np.bool_] | None = None,
    progress: bool = True,
) -> Viewed:
    """Feed every frame of a source to the front end and log what it finds.

    Args:
        source: the recording.
        front_end: a fresh one.
        log: to log to.
        mask: (H, W) bool, false for pixels to ignore in every frame; None for none.
        progress: show a progress bar.

    Raises:
        SourceError: the source has not what the front end's mode needs, or not a single frame could be read.
    """
    from tqdm import tqdm

    mode = front_end.config.scale.mode
    source.require(mode)
    viewed = Viewed()
    for frame in tqdm(source, total=source.length, unit="frame", disable=not progress):
        try:
            taken, picture = replace(frame.to_frame(mode), usable=mask), frame.decode_color()
            result = front_end.process(taken)
        except (FrameRefusedError, MaskError, SourceError) as error:
            viewed.refused.append(str(error))
            log.refuse(frame.index, frame.stamp_ns, str(error))
            continue
        log.add(result, frame.index, picture)
        viewed.frames += 1
        viewed.located += place(result) is not None
        viewed.keyframes += sum(event.added for event in result.events)
    if not viewed.frames:
        raise SourceError(f"{source.name}: not a single frame could be processed: {'; '.join(viewed.refused[:3])}")
    return viewed
