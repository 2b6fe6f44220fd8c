"""`loftr_ros loops`: all loops in and between recordings, without ROS."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.factors import require_gtsam
from loftr_ros.extras import why_no_plots
from loftr_ros.frontend.mask import MaskError
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.geometry.two_view import RelativePose
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import ArchiveConfig, LoopConfig
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.places.detector import LoopClosure
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName
from loftr_ros.places.live import LiveLoopDetector
from loftr_ros.places.loop_plot import plot_loops
from loftr_ros.places.placement import GraphKeyframe, Loop
from loftr_ros.places.pose_graph import PoseGraph
from loftr_ros.places.view import NewKeyframe, compressed
from loftr_ros.recordings import Source, SourceError
from loftr_ros.recordings.progress import MARKER, write_marker
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.loop_optimisation import write_optimised
from loftr_ros.tools.loop_report import BestLoops, RecordingReport, Report, write_keyframes, write_loops

_FIRST_FRAMES = 200  # of a recording; its first keyframe is among them
_TABLES = (("loops", ".g2o"), ("loops", ".csv"), ("keyframes", ".csv"), ("loops", ".png"))


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording of a robot.

    Attributes:
        robot: name of the robot.
        source: the recording.
    """

    robot: str
    source: Source


def find_loops(
    recordings: Sequence[Recording],
    front_end: FrontEnd,
    descriptor: PlaceDescriptor,
    archive: Archive,
    output: Path,
    *,
    loop: LoopConfig | None = None,
    jpeg_quality: int = ArchiveConfig().jpeg_quality,
    reader: FrameReader | None = None,
    progress: bool = True,
    optimise: bool = False,
    back_end: BackEndConfig | None = None,
) -> Report:
    """Find loops within recordings, between them, and with the earlier content of an archive.

    The result does not depend on the machine's speed: every keyframe is searched for, and every image between keyframes
    may confirm a place. Writes `loops.g2o`, `keyframes.csv`, `loops.csv`, `loops.png`, and `loop_N.png` of the best
    loops. Only poses are kept in memory. After Ctrl-C the results so far are written, with a `partial.txt`. Called
    again with the same output and archive, the search continues after the last archived keyframe; the earlier tables
    are then in `loops_1.csv` and so on.

    Args:
        recordings: processed in this order; each is a separate session.
        front_end: its matcher and settings are used, its stream is not.
        descriptor: the matcher's place descriptor.
        archive: stores the keyframes, and is searched.
        output: folder to write to; it is created if necessary.
        loop: settings of the loop search; None for the defaults.
        jpeg_quality: of archived images, unless the recording has JPEG files.
        reader: makes frames with the node's parameters; None for their defaults.
        progress: show a progress bar.
        optimise: also solve the graph and write `optimised.g2o`, `optimised.csv` and `optimised.png`; needs GTSAM.
        back_end: settings of the back end; None for the defaults.

    Raises:
        BackEndError: GTSAM is missing, or cannot solve the graph.
        SourceError: a source lacks what the front end's mode needs, no frame of it could be read, or it is already in
            the archive.
        PlacesError: the archive cannot be read or written.
    """
    for recording in recordings:
        recording.source.require(front_end.config.scale.mode)
    output.mkdir(parents=True, exist_ok=True)
    if optimise:
        require_gtsam()  # before the work, to fail at once
    job = _Job(front_end, descriptor, archive, loop or LoopConfig(), jpeg_quality, reader or FrameReader())
    if (output / MARKER).exists() and len(archive):
        job.resumes = True
        _set_aside(output)
    for recording in recordings:
        job.go_through(recording, progress)
        if job.report.interrupted:
            break
    report = job.finish()
    graph = PoseGraph(report.keyframes, report.loops)
    graph.write_g2o(output / "loops.g2o")
    write_keyframes(output / "keyframes.csv", graph)
    write_loops(output / "loops.csv", report)
    if (reason := why_no_plots()) and report.recordings:
        report.recordings[-1].notes.append(f"loops.png is left out, since {reason}")
    elif not reason:
        plot_loops(output / "loops.png", graph)
    job.pictures.write(output, archive)
    if optimise:
        report.back_end = write_optimised(output, report, back_end)
    write_marker(output, report.missing)
    return report


class _Job:
    """Searches recordings in turn."""

    def __init__(
        self,
        front_end: FrontEnd,
        descriptor: PlaceDescriptor,
        archive: Archive,
        config: LoopConfig,
        jpeg_quality: int,
        reader: FrameReader,
    ) -> None:
        self.matcher, self.config = front_end.matcher, front_end.config
        self.descriptor, self.archive, self.jpeg_quality, self.reader = descriptor, archive, jpeg_quality, reader
        self.loop = config
        self.report = Report(known_before=len(archive), min_age=config.min_age)
        self.pictures = BestLoops()
        self.resumes = False

    def go_through(self, recording: Recording, progress: bool) -> None:
        """Archive a recording's keyframes, and search for the place of each."""
        robot, source = recording.robot, recording.source
        known = {each.stamp_ns: each.name for each in self._of_before(robot)}
        detector = LiveLoopDetector(
            self.archive,
            self.matcher,
            robot=robot,
            config=self.config,
            loop=self.loop,
            describe=self.descriptor,
            keep=lambda finished: self._keep(finished, known),
        )
        report = RecordingReport(robot, source.name, detector.session)
        self.report.recordings.append(report)
        done = self._archived_until(source, known) if self.resumes else None
        if done is not None:
            report.notes.append(f"continues after {done / 1e9:.3f} s, where the earlier run was stopped")
        with report.progress.watching():
            for frame in report.progress.frames(source, progress, robot, after=done):
                try:
                    image = self.reader.read(frame, self.config.scale.mode)
                except (MaskError, SourceError) as error:
                    report.refused.append(str(error))
                    continue
                try:
                    _, closures = detector.process(image)
                except (FrameRefusedError, MaskError) as error:
                    report.refused.append(str(error))
                    continue
                report.frames += 1
                self._found(closures)
                view = detector.view
                if view is not None and view.name is not None:
                    stamp_ns = view.frame.stamp_ns
                    report.stamps_ns = (report.stamps_ns[0] if report.keyframes else stamp_ns, stamp_ns)
                    report.keyframes += 1
                    if frame.pose is not None:
                        self.report.truth[view.name] = frame.pose
                        self.report.truth_is_metric &= frame.metric
        detector.close()
        report.unread += detector.unread
        report.notes += source.notes
        if not report.keyframes and not report.progress.interrupted and done is None:
            reasons = "; ".join(report.refused[:3]) or (
                f"none of its {report.frames} frames has texture to match" if report.frames else "it has no frames"
            )
            raise SourceError(f"{source.name}: no keyframe, because no frame could be processed: {reasons}")

    def _archived_until(self, source: Source, known: dict[int, KeyframeName]) -> int | None:
        """Stamp of a recording's last keyframe in the archive; None if the archive has none of its keyframes."""
        for frame in itertools.islice(source, _FIRST_FRAMES) if known else ():
            if frame.stamp_ns not in known:
                continue
            twin = self.archive.get(known[frame.stamp_ns])
            try:
                image = compressed(self.reader.read(frame, self.config.scale.mode), self.jpeg_quality)
            except (SourceError, ValueError):
                continue
            same = twin is not None and twin.image == image
            return max(stamp for stamp in known if stamp >= frame.stamp_ns) if same else None
        return None

    def finish(self) -> Report:
        """The report, including the archived trajectories that loops lead to."""
        report = self.report
        here = {keyframe.name for keyframe in report.keyframes}
        missing = {loop.older for loop in report.loops} - here
        if missing:
            sessions = {(each.name.robot, each.session) for each in self.archive.descriptors() if each.name in missing}
            others = (each for each in self.archive.descriptors() if each.name not in here)
            report.keyframes += self._of_sessions(others, sessions)
        # A keyframe that the archive has dropped since, for its size limit, is not a vertex.
        there = {keyframe.name for keyframe in report.keyframes}
        report.loops = [loop for loop in report.loops if loop.older in there]
        return report

    def _of_sessions(
        self, keyframes: Iterable[ArchivedKeyframe], sessions: set[tuple[str, int]]
    ) -> list[GraphKeyframe]:
        """The keyframes of sessions. If one keyframe of a trajectory is in metres, all are."""
        kept = [_graph_keyframe(each, False) for each in keyframes if (each.name.robot, each.session) in sessions]
        metric = {each.trajectory for each in kept if each.link is not None and each.link.is_metric}
        linked = {each.trajectory for each in kept if each.link is not None}
        for each in kept:
            if each.trajectory not in linked:
                whole = self.archive.get(each.name)  # its depth shows the unit
                if whole is not None and whole.depth is not None and whole.depth.is_metric:
                    metric.add(each.trajectory)
        return [replace(each, is_metric=each.trajectory in metric) for each in kept]

    def _of_before(self, robot: str) -> Iterator[ArchivedKeyframe]:
        if self.archive.last_id(robot):
            yield from (keyframe for keyframe in self.archive.descriptors() if keyframe.name.robot == robot)

    def _keep(self, finished: NewKeyframe, known: dict[int, KeyframeName]) -> None:
        keyframe = finished.archived(self.jpeg_quality)
        twin = self.archive.get(known[keyframe.stamp_ns]) if keyframe.stamp_ns in known else None
        if twin is not None and twin.image == keyframe.image:
            raise SourceError(
                f"the recording of {keyframe.name.robot} is already in the archive '{self.archive.uri}': keyframe "
                f"{twin.name} is the same image, so every place in it would be found again. Remove that archive, "
                "choose another one (--archive), or give this robot another name (--robot)"
            )
        self.archive.add(keyframe)
        location = finished.view.location
        self.report.keyframes.append(_graph_keyframe(keyframe, location is not None and location.is_metric))

    def _found(self, closures: Sequence[LoopClosure]) -> None:
        for closure in closures:
            found = closure.found
            self.report.loops.append(
                Loop(
                    found.keyframe.name,
                    closure.current,
                    (found.keyframe.stamp_ns, closure.stamp_ns),
                    _without_inliers(found.pose),
                    None if found.own_unit is None else _without_inliers(found.own_unit),
                    len(found.correspondences),
                    found.num_inliers,
                    closure.similarity,
                    found.score,
                    closure.confirmations,
                )
            )
            self.pictures.offer(closure, len(self.report.loops))


def _set_aside(output: Path) -> None:
    """Rename the tables of a stopped run, to keep them."""
    number = 1
    while any((output / f"{stem}_{number}{ending}").exists() for stem, ending in _TABLES):
        number += 1
    for stem, ending in _TABLES:
        with suppress(FileNotFoundError):
            (output / f"{stem}{ending}").rename(output / f"{stem}_{number}{ending}")


def _graph_keyframe(keyframe: ArchivedKeyframe, is_metric: bool) -> GraphKeyframe:
    return GraphKeyframe(
        keyframe.name,
        keyframe.session,
        keyframe.segment,
        keyframe.stamp_ns,
        keyframe.frame_id,
        keyframe.pose if keyframe.camera is not None else None,  # without a camera it is only the start of a trajectory
        keyframe.link,
        is_metric,
    )


def _without_inliers(pose: RelativePose) -> RelativePose:
    return replace(pose, inliers=np.zeros(0, np.bool_))
