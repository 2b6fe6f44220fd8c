"""`run --optimise` and `loops --optimise`: the back end over a recording or a graph of loops, without ROS."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.back_end import BackEnd
from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.backend.measurements import (
    ImageMeasurement,
    KeyframeKey,
    KeyframeMeasurement,
    Landmarks,
    Length,
    LoopMeasurement,
    PoseMeasurement,
    SharedLandmarks,
    Sightings,
    born_in,
)
from loftr_ros.backend.storage import save_map, write_g2o, write_ply
from loftr_ros.evaluation.trajectory import tum_lines
from loftr_ros.evaluation.trajectory_errors import alignment, trajectory_errors
from loftr_ros.extras import why_no_plots
from loftr_ros.frontend.keyframes import Keyframe
from loftr_ros.frontend.odometry import ChainLink
from loftr_ros.frontend.pipeline import FrontEnd, FrontEndResult
from loftr_ros.frontend.results import KeyframeMatch
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.geometry.se3 import inverse
from loftr_ros.geometry.two_view import RelativePose
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import LoopConfig
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.places.detector import LoopClosure, LoopDetector
from loftr_ros.places.keyframe import PlacesError
from loftr_ros.places.placement import GraphKeyframe, Loop
from loftr_ros.places.verification import Verifier
from loftr_ros.places.view import Observer

Array = NDArray[np.float64]

_ROBOT = "robot"


def measured(pose: RelativePose) -> PoseMeasurement | None:
    """A relative pose of the front end as input of the back end; None if it must not continue a trajectory."""
    if not pose.status.is_believed:
        return None
    length = Length.METRES if pose.scale_known else Length.DIRECTION if pose.has_direction else Length.NONE
    return PoseMeasurement(pose.matrix, pose.covariance, length)


def measured_link(link: ChainLink) -> PoseMeasurement:
    """The pose between two keyframes as input of the back end."""
    return PoseMeasurement(link.pose, link.covariance, Length.METRES if link.is_metric else Length.OWN_UNIT)


def measured_loop(
    older: KeyframeKey, newer: KeyframeKey, pose: RelativePose, own_unit: RelativePose | None, score: float
) -> LoopMeasurement | None:
    """A loop as input of the back end: in metres, or else in the older keyframe's unit if that is known."""
    if own_unit is not None and not pose.scale_known and own_unit.status.is_believed:
        return LoopMeasurement(
            older, newer, PoseMeasurement(own_unit.matrix, own_unit.covariance, Length.OWN_UNIT), score
        )
    found = measured(pose)
    return None if found is None else LoopMeasurement(older, newer, found, score)


def back_end_of(
    keyframes: Sequence[GraphKeyframe], loops: Iterable[Loop], config: BackEndConfig | None = None
) -> BackEnd:
    """A back end with the graph of `loftr_ros loops`; keyframes without a pose are left out.

    Raises:
        BackEndError: GTSAM is not installed.
    """
    back_end = BackEnd(config)
    for keyframe in keyframes:
        if keyframe.pose is None:
            continue
        link = keyframe.link
        back_end.add_keyframe(
            KeyframeMeasurement(
                KeyframeKey(*keyframe.name),
                keyframe.stamp_ns,
                keyframe.frame_id,
                None if link is None else KeyframeKey(keyframe.name.robot, link.previous),
                None if link is None else measured_link(link),
                keyframe.is_metric,
            )
        )
    for loop in loops:
        found = measured_loop(KeyframeKey(*loop.older), KeyframeKey(*loop.newer), loop.pose, loop.own_unit, loop.score)
        if found is not None:
            back_end.add_loop(found)
    return back_end


def shared_landmarks(match: KeyframeMatch | None, keyframe: Keyframe) -> SharedLandmarks | None:
    """What a keyframe shares with the one before, from the match of the two; None without a calibration."""
    camera = keyframe.frame.camera
    if match is None or camera is None:
        return None
    keep = match.pose.inliers & match.seen.known
    name, std = match.landmark[keep], match.seen.std[keep] / np.float32(camera.focal_length)
    seen = Sightings(name, camera.unproject(match.seen.points[keep]).astype(np.float32), std)
    return SharedLandmarks(seen, born_in(match.keyframe.id, name, match.keyframe_rays[keep], std))


class LoopSearch:
    """Searches a recording for places that it shows twice, with a temporary archive."""

    def __init__(self, front_end: FrontEnd, config: LoopConfig) -> None:
        """Start with an empty archive.

        Args:
            front_end: its matcher and settings are used, its stream is not.
            config: settings of the loop search.

        Raises:
            PlacesError: the archive cannot be created.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="loftr_ros-")
        descriptor = PlaceDescriptor.of(front_end.matcher)
        self._archive = Archive.open(f"{self._folder.name}/archive", descriptor.space, descriptor.dimension)
        self._observer = Observer(descriptor, _ROBOT, 1)
        self._detector = LoopDetector(self._archive, Verifier(front_end.pairs), config)
        self._session = self._observer.session

    def process(self, result: FrontEndResult) -> list[LoopClosure]:
        """Process a frame; returns the loops that are confirmed by now."""
        view, finished = self._observer.observe(result, result.encoded)
        if finished is not None:
            self._archive.add(finished.archived(90))
        if self._observer.session != self._session:
            self._session = self._observer.session
            self._detector.reset()
        try:
            return self._detector.process(view, result.encoded)
        except PlacesError as error:
            if not error.is_of_one_keyframe:
                raise
        except FrameRefusedError:  # the network does not accept the shape of an archived image
            pass
        return []

    def close(self) -> None:
        """Remove the archive."""
        self._archive.close()
        self._folder.cleanup()


@dataclass
class Optimisation:
    """Passes the front end's results to the back end, and writes the back end's results.

    Attributes:
        back_end: the back end.
        search: finds loops; None to search for none.
        stamps: of the frames with a known place, in nanoseconds.
        steps: keyframe of each of these frames, and (4, 4) T_keyframe_frame in the keyframe's unit.
    """

    back_end: BackEnd
    search: LoopSearch | None = None
    stamps: list[int] = field(default_factory=list)
    steps: list[tuple[KeyframeKey, Array]] = field(default_factory=list)
    _seen: dict[int, KeyframeMatch] = field(default_factory=dict)

    def use_imu(self, camera_from_imu: Array) -> ImuSamples:
        """Let an inertial sensor tell metres, if a single camera does not know them.

        Args:
            camera_from_imu: (4, 4) T_camera_imu, metres.

        Returns:
            What takes its samples, which come before the frames.
        """
        samples = self.back_end.imu[_ROBOT] = ImuSamples(camera_from_imu)
        return samples

    def add(self, result: FrontEndResult) -> None:
        """Add the next frame's result."""
        frame = result.frame
        poses = {_key(match.keyframe): measured(match.pose) for match in result.matches}
        self.back_end.add_image(
            ImageMeasurement(frame.stamp_ns, _ROBOT, {key: pose for key, pose in poses.items() if pose is not None})
        )
        if result.matches:
            self._seen[result.matches[0].keyframe.id] = result.matches[0]
        for event in result.events:
            keyframe = event.keyframe
            if not event.added or keyframe.frame.camera is None:
                continue
            link, location = keyframe.link, keyframe.location
            self.back_end.add_keyframe(
                KeyframeMeasurement(
                    _key(keyframe),
                    keyframe.frame.stamp_ns,
                    keyframe.frame.frame_id,
                    None if link is None else KeyframeKey(_ROBOT, link.previous),
                    None if link is None else measured_link(link),
                    location is not None and location.is_metric,
                    None if link is None else shared_landmarks(self._seen.get(link.previous), keyframe),
                )
            )
            self._keep_landmarks()
        if self.search is not None:
            for closure in self.search.process(result):
                found = closure.found
                loop = measured_loop(
                    KeyframeKey(*found.keyframe.name),
                    KeyframeKey(*closure.current),
                    found.pose,
                    found.own_unit,
                    found.score,
                )
                if loop is not None:
                    self.back_end.add_loop(loop)
        self._remember(result)

    def _keep_landmarks(self) -> None:
        for match in self._seen.values():
            points, std = match.points()
            keep = match.pose.inliers & np.isfinite(std)
            self.back_end.add_landmarks(
                _key(match.keyframe),
                Landmarks(
                    points[keep].astype(np.float32),
                    std[keep].astype(np.float32),
                    match.correspondences.track_id[keep].astype(np.uint32),
                ),
            )
        self._seen.clear()

    def _remember(self, result: FrontEndResult) -> None:
        """Keep the frame's pose relative to its keyframe."""
        location = result.place
        if location is None:
            return
        own = [e.keyframe for e in result.events if e.added and e.keyframe.frame is result.frame]
        keyframe = own[0] if own else result.matches[0].keyframe
        start = keyframe.location
        if start is None or start.segment != location.segment or _key(keyframe) not in self.back_end.graph.numbers:
            return
        self.stamps.append(result.frame.stamp_ns)
        self.steps.append((_key(keyframe), inverse(start.pose) @ location.pose))

    @cached_property
    def poses(self) -> tuple[Array, NDArray[np.int64], bool]:
        """(N, 4, 4) T_map_camera of the frames of `stamps`, (N,) their groups, and whether all are in metres.

        Only after `finish`.
        """
        poses, groups, metric = [], [], True
        for key, step in self.steps:
            found = self.back_end.place(key)
            assert found is not None
            poses.append(found.camera.moved(step).pose)
            groups.append(found.group)
            metric &= found.is_metric
        return np.array(poses, np.float64).reshape(-1, 4, 4), np.array(groups, np.int64), metric

    def largest_part(self) -> tuple[dict[int, Array], bool, int]:
        """(4, 4) T_map_camera by stamp of the frames of the largest part, whether in metres, and how many parts."""
        poses, groups, is_metric = self.poses
        names = _by_size(groups)
        largest = {self.stamps[k]: poses[k] for k in np.flatnonzero(groups == names[0])} if names else {}
        return largest, is_metric, len(names)

    def finish(self) -> None:
        """Solve the graph.

        Raises:
            BackEndError: GTSAM cannot solve it.
        """
        self._keep_landmarks()
        self.back_end.optimise()
        if self.search is not None:
            self.search.close()

    def write(
        self, folder: Path, truth: Mapping[int, Array], odometry: Mapping[int, Array], truth_is_metric: bool
    ) -> list[str]:
        """Write `optimised.tum`, `graph.g2o`, `map.ply`, `map.npz` and `optimised.png`.

        Args:
            folder: an existing folder.
            truth: (4, 4) T_world_camera by stamp.
            odometry: the front end's (4, 4) T_odom_camera by stamp.
            truth_is_metric: whether the truth is in metres.

        Returns:
            The results as lines of text.

        Raises:
            BackEndError: a file cannot be written.
        """
        poses, groups, _ = self.poses
        own, metric, _ = self.largest_part()
        for old in folder.glob("optimised*.tum"):
            old.unlink()
        lines = tum_lines(np.array(self.stamps, np.int64), poses)
        names = _by_size(groups)
        for number, group in enumerate(names):
            name = "optimised.tum" if number == 0 else f"optimised_{number}.tum"
            part = [line for line, of in zip(lines, groups, strict=True) if of == group]
            (folder / name).write_text("\n".join(part) + "\n")
        write_g2o(self.back_end, folder / "graph.g2o")
        landmarks = write_ply(self.back_end, folder / "map.ply")
        save_map(self.back_end, folder / "map.npz")
        seen = {each.key: truth[each.stamp_ns] for each in self.back_end.graph.vertices if each.stamp_ns in truth}
        if not why_no_plots():  # the note on trajectory.png says why
            plot_optimised(folder / "optimised.png", self.back_end, names[0] if names else 0, seen, metric)
        counts = self.back_end.counts
        text = [
            f"back end: {counts.keyframes} keyframes, {counts.believed} of {counts.loops} loops believed, "
            f"{landmarks} landmarks" + (f", {counts.broken} links rejected" if counts.broken else "")
        ]
        if len(names) > 1:
            text.append(
                f"  {len(names)} parts without a loop between them: optimised.tum is the longest, optimised_1.tum and "
                "so on are the others, each in its own frame"
            )
        if (said := self.back_end.inertial_report(_ROBOT)) is not None:
            text.append(f"  inertial sensor: {said}")
            down = self.back_end.down(names[0]) if names else None
            if down is not None:
                axes = " ".join(f"{part:.3f}" for part in down)
                text.append(
                    f"  gravity points along {axes} of the axes that optimised.tum has (x right, y down, z ahead)"
                )
        stamps = [stamp for stamp in own if stamp in truth]
        if len(stamps) > 2:
            true = np.array([truth[stamp] for stamp in stamps])
            found = trajectory_errors(np.array([own[stamp] for stamp in stamps]), true, not metric)
            odometry_is_metric = metric and not self.back_end.graph.units
            before = trajectory_errors(np.array([odometry[stamp] for stamp in stamps]), true, not odometry_is_metric)
            unit = "m" if truth_is_metric else "(the truth's unit)"
            if found is not None and before is not None:
                before_scaled = " with scale" if before.with_scale and not found.with_scale else ""
                text.append(
                    f"back end against the truth: ATE {found.ate:.3f} {unit} RMSE, aligned "
                    f"{'with' if found.with_scale else 'without'} scale, odometry {before.ate:.3f}{before_scaled}; "
                    f"drift {found.drift:.2f} %, odometry {before.drift:.2f} % of the path ({found.poses} frames)"
                )
        return text


def _by_size(groups: NDArray[np.int64]) -> list[int]:
    """Numbers of the groups of (N,) frames, the largest first."""
    return sorted(set(groups.tolist()), key=lambda group: (-int((groups == group).sum()), group))


def _key(keyframe: Keyframe) -> KeyframeKey:
    return KeyframeKey(_ROBOT, keyframe.id)


def plot_optimised(
    path: Path, back_end: BackEnd, group: int, truth: Mapping[KeyframeKey, Array] | None = None, is_metric: bool = True
) -> None:
    """Draw the keyframes of a group from above: as chained, as optimised, and the loops.

    Args:
        path: file to write; its extension selects the format.
        back_end: after the optimisation.
        group: number of the group.
        truth: (4, 4) T_world_camera of keyframes, where known; it is drawn aligned to the optimised ones.
        is_metric: whether lengths are in metres; else the truth is scaled.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chained = back_end.odometry()
    found = [(vertex, place) for vertex, place in back_end.places() if place.group == group]
    if not found:
        return
    positions = np.array([place.camera.pose[:3, 3] for _, place in found])
    up = 2 if np.ptp(positions[:, 2]) >= np.ptp(positions[:, 1]) else 1
    figure = Figure(figsize=(8.0, 7.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    where = {vertex.number: place.camera.pose[:3, 3] for vertex, place in found}
    for loop, believed in zip(back_end.graph.loops, back_end.believed(), strict=True):
        if loop.older in where and loop.newer in where:
            ends = np.array([where[loop.older], where[loop.newer]])
            axes.plot(ends[:, 0], ends[:, up], color="#2b8a3e" if believed else "#c2255c", linewidth=0.8,
                      linestyle="-" if believed else ":", zorder=1)  # fmt: skip
    for trajectory in dict.fromkeys(vertex.trajectory for vertex, _ in found):
        numbers = [vertex.number for vertex, _ in found if vertex.trajectory == trajectory]
        before = np.array([chained[number].pose[:3, 3] for number in numbers])
        after = np.array([where[number] for number in numbers])
        if trajectory == group:
            axes.plot(before[:, 0], before[:, up], color="#868e96", linewidth=1.2, label="odometry")
        axes.plot(after[:, 0], after[:, up], ".-", color="#1f6fb4", linewidth=1.5, markersize=3,
                  label="back end" if trajectory == group else None)  # fmt: skip
    known = [k for k, (vertex, _) in enumerate(found) if truth and vertex.key in truth]
    if truth and len(known) > 2:
        true = np.array([truth[found[k][0].key][:3, 3] for k in known])
        rotation, scale = alignment(true, positions[known])
        factor = 1.0 if is_metric or not np.isfinite(scale) else scale
        shown = factor * (true - true.mean(axis=0)) @ rotation.T + positions[known].mean(axis=0)
        axes.plot(shown[:, 0], shown[:, up], color="black", linewidth=1.0, linestyle="--", label="truth")
    counts = back_end.counts
    axes.set_title(f"{len(found)} keyframes, {counts.believed} of {counts.loops} loops believed (red: not)")
    axes.set_aspect("equal", adjustable="datalim")
    unit = "m" if is_metric else "own unit"
    axes.set_xlabel(f"x, right [{unit}]")
    axes.set_ylabel(f"{'z, forward' if up == 2 else 'y, down'} [{unit}]")
    axes.legend(loc="best")
    figure.savefig(path)
