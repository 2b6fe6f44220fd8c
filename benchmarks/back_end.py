"""The back end: trajectories before and after it, beside ORB-SLAM3, with false loops put in, and what it costs.

Each recording goes through front ends of several match orders (as in trajectory.py) and modes at once. What each says
is given to back ends with other loops. Errors are aligned without scale in metric modes, with scale for one camera.
Located: frames whose place is known, in the largest part of the map. Breaks: parts that nothing connects, less one; the
odometry's errors are of all parts as they were placed.

    .venv/bin/python benchmarks/back_end.py [--data ../shared/data] [--sets sevenscenes:rgbd+mono] [--out FILE]
    .venv/bin/python benchmarks/back_end.py --growth 100 1000 10000

With `--keep FOLDER` what the front ends said is kept there, and taken from there the next time. ORB-SLAM3 runs over the
same images where its environment is there (`make orb-slam3`), as fast as they were recorded, or `--slower` by a factor.
"""

from __future__ import annotations

import argparse
import pickle
import platform
import resource
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import orb_slam3

from loftr_ros.backend.back_end import BackEnd
from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.measurements import (
    KeyframeKey,
    KeyframeMeasurement,
    Length,
    LoopMeasurement,
    PoseMeasurement,
)
from loftr_ros.evaluation.trajectory_errors import trajectory_errors
from loftr_ros.geometry.se3 import between, rotation_matrix
from loftr_ros.settings import with_values

Array = NDArray[np.float64]

SETS = (
    "sevenscenes:rgbd+mono",
    "kitti06_stereo:stereo+mono",
    "rendered:room?seed=3&frames=300:rgbd+mono",
    "revisits:700?rate=3:rgbd+mono",
)
# Loops within short recordings are wanted.
SHORT = {"loop.min_age": 2.0}
FALSE_PART = 0.2
# Choices of false loops, for each order.
CHOICES = 5
ORDERS = 5


@dataclass
class Said:
    """What a front end said of a recording, in order; it is given to back ends as a `BackEnd` itself.

    Attributes:
        calls: names of a back end's methods, and what they were given.
        steps: of each located frame the stamp, its keyframe, and (4, 4) T_keyframe_frame in the keyframe's unit.
        odometry: (4, 4) by stamp.
        truth: (4, 4) by stamp.
        metric: whether lengths are in metres.
    """

    calls: list[tuple[str, Any]] = field(default_factory=list)
    steps: list[tuple[int, KeyframeKey, Array]] = field(default_factory=list)
    odometry: dict[int, Array] = field(default_factory=dict)
    truth: dict[int, Array] = field(default_factory=dict)
    metric: bool = True

    @property
    def loops(self) -> list[LoopMeasurement]:
        """Those that were found."""
        return [given for name, given in self.calls if name == "add_loop"]

    def back_end(self, config: BackEndConfig, loops: list[LoopMeasurement]) -> BackEnd:
        """One that was told all of it, with other loops."""
        back_end = BackEnd(config)
        for name, given in self.calls:
            if name != "add_loop":
                getattr(back_end, name)(given)
        for loop in loops:
            back_end.add_loop(loop)
        back_end.optimise()
        return back_end


def listen(name: str, modes: list[str], orders: int, data: Path, extra: dict[str, Any]) -> dict[tuple[str, int], Said]:
    """Run front ends over a recording, of each mode and order; an image is encoded once for all of them."""
    from sparse_front_end import ShakenPairs

    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.places.config import LoopConfig
    from loftr_ros.recordings import open_source
    from loftr_ros.tools.opening import open_offline
    from loftr_ros.tools.optimise import LoopSearch, Optimisation

    said, standing = dict[tuple[str, int], Said](), []
    for mode in modes:
        values = {"mode": mode, **(SHORT if not name.startswith("revisits") else {}), **extra}
        opened, opened_reader = open_offline(values, "", "", None)
        if not standing:
            first, reader = opened, opened_reader
        for order in range(orders):
            front_end = FrontEnd(ShakenPairs(first.matcher, opened.config, order), opened.config)
            each = said[mode, order] = Said(metric=mode != "mono")
            search = LoopSearch(front_end, with_values(LoopConfig(), values, "loop."))
            standing.append((front_end, Optimisation(_Recorder(each), search), each))
    with open_source(_uri(name, data)) as source:
        for frame in source:
            image = reader.read(frame, modes[0])
            for front_end, optimisation, each in standing:
                result = front_end.process(image)
                optimisation.add(result)
                if frame.pose is not None:
                    each.truth[frame.stamp_ns] = frame.pose
                if result.location is not None:
                    each.odometry[frame.stamp_ns] = result.location.pose
    for _, optimisation, each in standing:
        steps = zip(optimisation.stamps, optimisation.steps, strict=True)
        each.steps = [(stamp, *where) for stamp, where in steps]
        assert optimisation.search is not None
        optimisation.search.close()
    return said


class _Recorder(BackEnd):
    """Notes what it is told, and takes it."""

    def __init__(self, said: Said) -> None:
        super().__init__()
        self.said = said

    def add_image(self, image: Any) -> None:
        self.said.calls.append(("add_image", image))
        super().add_image(image)

    def add_keyframe(self, keyframe: Any) -> bool:
        self.said.calls.append(("add_keyframe", keyframe))
        return super().add_keyframe(keyframe)

    def add_loop(self, loop: Any) -> None:
        self.said.calls.append(("add_loop", loop))
        super().add_loop(loop)


@dataclass(frozen=True)
class Row:
    """One trajectory's errors.

    Attributes:
        located: frames that the errors are of.
        breaks: parts of the trajectory that nothing connects, less one; None where that is not known.
        ate: metres.
        drift: percent.
    """

    located: int
    breaks: int | None
    ate: float
    drift: float


def errors(said: Said, back_end: BackEnd | None) -> Row:
    """Errors of the frames in the largest part of the map; of all frames, without a back end."""
    stamps, poses, groups, trajectories = [], [], [], set()
    for stamp, key, step in said.steps:
        if stamp not in said.truth or stamp not in said.odometry:
            continue
        place = None if back_end is None else back_end.place(key)
        stamps.append(stamp)
        groups.append(0 if place is None else place.group)
        poses.append(said.odometry[stamp] if place is None else place.camera.moved(step).pose)
    trajectories = {given.key for name, given in said.calls if name == "add_keyframe" and given.previous is None}
    breaks = len(trajectories) - 1 if back_end is None else len(set(groups)) - 1
    largest = np.array(groups) == np.bincount(groups).argmax()
    true = np.array([said.truth[stamp] for stamp in stamps])
    found = trajectory_errors(np.array(poses)[largest], true[largest], not said.metric)
    ate, drift = (np.nan, np.nan) if found is None else (found.ate, found.drift)
    return Row(int(largest.sum()), breaks, ate, drift)


def line(label: str, rows: list[Row], more: str = "") -> str:
    """Mean and standard deviation over orders, as a line of the table."""
    ate, drift = (np.array([getattr(each, name) for each in rows]) for name in ("ate", "drift"))
    located, breaks = sorted(each.located for each in rows), [each.breaks for each in rows if each.breaks is not None]
    span = f"{located[0]}" if located[0] == located[-1] else f"{located[0]} to {located[-1]}"
    broken = "-" if not breaks else f"{np.mean(breaks):.1f}"
    return (
        f"  {label:30s} {span:>13s} {broken:>6s} {1e3 * ate.mean():9.1f} +- {1e3 * ate.std():5.1f}"
        f" {drift.mean():7.2f} +- {drift.std():.2f}  {more}"
    )


def peer(name: str, mode: str, said: Said, arguments: argparse.Namespace) -> str:
    """ORB-SLAM3's line of a recording, or why there is none."""
    from loftr_ros.recordings import open_source
    from loftr_ros.recordings.reading import FrameReader

    if not arguments.peer_runs:
        return "  ORB-SLAM3 was not run"
    reader, found = FrameReader(), list[Row]()
    rate = len(said.truth) / max(1e-9, (max(said.truth) - min(said.truth)) / 1e9)
    try:
        for _ in range(arguments.peer_runs):
            with open_source(_uri(name, arguments.data)) as source:
                frames = (reader.read(frame, mode) for frame in source)
                poses = orb_slam3.track(frames, mode, arguments.orb_slam3, arguments.vocabulary, rate, arguments.slower)
            stamps = [stamp for stamp in poses if stamp in said.truth]
            estimated, true = (np.array([where[stamp] for stamp in stamps]) for where in (poses, said.truth))
            got = trajectory_errors(estimated, true, mode == "mono") if len(stamps) > 2 else None
            ate, drift = (np.nan, np.nan) if got is None else (got.ate, got.drift)
            found.append(Row(len(stamps), None, ate, drift))
    except orb_slam3.PeerError as error:
        return f"  ORB-SLAM3 did not run: {error}"
    return line("ORB-SLAM3", found, f"{len(found)} runs")


def _uri(name: str, data: Path) -> str:
    return name if name.startswith(("revisits", "rendered")) else str(data / name)


def false_loops(said: Said, number: int, seed: int) -> list[LoopMeasurement]:
    """Between keyframes far apart in time, with the pose of a right loop: as look-alikes are."""
    random, loops = np.random.default_rng(seed), said.loops
    keys = [given.key for name, given in said.calls if name == "add_keyframe"]
    found: list[LoopMeasurement] = []
    while len(found) < number:
        older, newer = sorted(random.integers(0, len(keys), 2))
        if newer - older > len(keys) / 5:
            like = loops[random.integers(len(loops))]
            found.append(LoopMeasurement(keys[older], keys[newer], like.measured, like.score))
    return found


def recording(name: str, orders: list[Said], config: BackEndConfig) -> list[str]:
    """A recording's lines, but for ORB-SLAM3's."""
    wholes = [said.back_end(config, said.loops) for said in orders]
    counts = [whole.counts for whole in wholes]
    said = orders[0]
    lines = [
        f"{name}: {len(said.truth)} frames, {np.mean([each.keyframes for each in counts]):.0f} keyframes, "
        f"{len(orders)} orders, {'with' if not said.metric else 'without'} scale",
        f"  {'':30s} {'located':>13s} {'breaks':>6s} {'ATE, mm':>18s} {'drift, %':>15s}",
        line("odometry", [errors(each, None) for each in orders]),
        line("back end", [errors(*each) for each in zip(orders, wholes, strict=True)],
             f"{sum(each.believed for each in counts)} of {sum(each.loops for each in counts)} loops"),
    ]  # fmt: skip
    if not said.metric:
        smooth = with_values(config, {"local.window": 8})
        rows = [errors(each, each.back_end(smooth, each.loops)) for each in orders]
        lines.append(line("back end, local.window 8", rows))
    if all(each.loops for each in orders):
        chosen = [
            [false_loops(each, max(1, round(FALSE_PART / (1 - FALSE_PART) * len(each.loops))), seed)
             for seed in range(CHOICES)]
            for each in orders
        ]  # fmt: skip
        lines.append(_with_false(orders, config, wholes, f"{FALSE_PART:.0%} false loops put in", chosen))
    chosen = [[look_alike(each, 10, seed) for seed in range(CHOICES)] for each in orders]
    lines.append(_with_false(orders, config, wholes, "a look-alike of 10 in a row", chosen))
    return lines


def _with_false(
    orders: list[Said],
    config: BackEndConfig,
    wholes: list[BackEnd],
    label: str,
    chosen: list[list[list[LoopMeasurement]]],
) -> str:
    """A line: with false loops beside those that were found, several times for each order."""
    rows, kept, lost, number = [], 0, 0, 0
    for said, whole, choices in zip(orders, wholes, chosen, strict=True):
        for wrong in choices:
            back_end = said.back_end(config, [*said.loops, *wrong])
            pairs = {frozenset((each.older, each.newer)) for each in wrong}
            keys = [vertex.key for vertex in back_end.graph.vertices]
            flags = [
                (believed, frozenset((keys[loop.older], keys[loop.newer])) in pairs)
                for loop, believed in zip(back_end.graph.loops, back_end.believed(), strict=True)
            ]
            kept += sum(believed and is_false for believed, is_false in flags)
            lost += whole.counts.believed - sum(believed and not is_false for believed, is_false in flags)
            number += len(wrong)
            rows.append(errors(said, back_end))
    return line(label, rows, f"{kept} of {number} false kept, {lost} right ones lost")


def look_alike(said: Said, number: int, seed: int) -> list[LoopMeasurement]:
    """A stretch of keyframes that is taken for another one, by loops that agree with one another."""
    random = np.random.default_rng(seed)
    given = [each for name, each in said.calls if name == "add_keyframe"]
    given = [each for each in given if each.stamp_ns in said.odometry]
    number = min(number, len(given) // 4)
    first = int(random.integers(0, len(given) // 2 - number + 1))
    second = int(random.integers(len(given) // 2, len(given) - number + 1))
    poses = [said.odometry[each.stamp_ns] for each in given]
    onto = poses[first] @ np.linalg.inv(poses[second])
    length = Length.METRES if said.metric else Length.OWN_UNIT
    found = []
    for k in range(number):
        pose = np.linalg.inv(poses[first + k]) @ onto @ poses[second + k]
        measured = PoseMeasurement(pose, np.diag(np.repeat([1e-4, 1e-5], 3)), length)
        found.append(LoopMeasurement(given[first + k].key, given[second + k].key, measured, 0.9))
    return found


def growth(sizes: list[int], config: BackEndConfig) -> None:
    """Print what a keyframe costs on walks of several rounds, with a loop for every fifth keyframe.

    Every second loop leads to the round before, the others to the first one.
    """
    print("keyframes  loops  add, ms a keyframe  solve, s  solve, ms a keyframe  memory, kB a keyframe  ATE, m")
    for size in sizes:
        random, lap = np.random.default_rng(0), 100
        truth = []
        for k in range(size):
            angle, pose = 2 * np.pi * k / lap, np.eye(4)
            pose[:3, :3] = rotation_matrix([0, -angle, 0])
            pose[:3, 3] = [5 * np.cos(angle), 0.1 * np.sin(3 * angle), 5 * np.sin(angle)]
            truth.append(pose)

        def measured(first: int, second: int, poses: list[Array] = truth, random: Any = random) -> PoseMeasurement:
            pose = between(poses[first], poses[second])
            pose[:3, 3] += 0.01 * random.normal(size=3)
            pose[:3, :3] = rotation_matrix(0.002 * random.normal(size=3)) @ pose[:3, :3]
            return PoseMeasurement(pose, np.diag(np.repeat([1e-4, 4e-6], 3)))

        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        back_end = BackEnd(config)
        for k in range(size):
            previous = None if k == 0 else KeyframeKey("robot", k)
            link = None if k == 0 else measured(k - 1, k)
            back_end.add_keyframe(KeyframeMeasurement(KeyframeKey("robot", k + 1), k, "camera", previous, link, True))
        added = time.process_time() - begun
        for newer in range(lap // 2, size, 5):
            # To the round before, or to the first one.
            older = newer % lap if newer % 10 and newer >= lap else max(newer - lap, newer // 2 - lap // 4, 0)
            back_end.add_loop(
                LoopMeasurement(
                    KeyframeKey("robot", older + 1), KeyframeKey("robot", newer + 1), measured(older, newer)
                )
            )
        begun = time.process_time()
        back_end.optimise()
        solved = time.process_time() - begun
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        places = np.array([place.camera.pose for _, place in back_end.places()])
        found = trajectory_errors(places, np.array(truth), False)
        print(f"{size:9d} {len(back_end.graph.loops):6d} {1e3 * added / size:19.2f} {solved:9.2f} "
              f"{1e3 * solved / size:21.2f} {memory / size:22.1f} {found.ate if found else np.nan:7.3f}")  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--sets", nargs="*", default=SETS, help="folder of --data or revisits:SEED, a colon, modes with + between"
    )
    parser.add_argument("--orders", type=int, default=ORDERS, help="match orders that everything is run with")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--growth", nargs="*", type=int, help="number of keyframes; no recordings then")
    parser.add_argument("--keep", type=Path, help="folder to keep in what the front end said")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the back end")
    parser.add_argument("--front-end", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the front end")
    parser.add_argument("--orb-slam3", type=Path, default=orb_slam3.FOLDER / "bin" / "python", help="its python")
    parser.add_argument("--vocabulary", type=Path, default=orb_slam3.FOLDER / "ORBvoc.txt", help="its vocabulary")
    parser.add_argument("--slower", type=float, default=1.0, help="factor on the time that it has for a frame")
    parser.add_argument(
        "--peer-runs", type=int, default=3, help="how often it runs: its threads are a matter of chance"
    )
    arguments = parser.parse_args()
    config, extra = with_values(BackEndConfig(), _values(arguments.set)), _values(arguments.front_end)
    table = list[str]()

    def show(*lines: str) -> None:
        table.extend(lines)
        print(*lines, sep="\n", flush=True)
        if arguments.out:
            arguments.out.write_text("\n".join(table) + "\n")

    show(
        f"{platform.processor() or platform.machine()}, GTSAM {version('gtsam')}; settings by default"
        + "".join(f", {each}" for each in (*arguments.set, *arguments.front_end)),
        "Mean and standard deviation over orders, of false loops over choices, too.",
        "",
    )
    if arguments.growth is not None:
        growth(arguments.growth or [100, 1000, 10000], config)
        return
    for entry in arguments.sets:
        name, _, modes = entry.rpartition(":")
        kept = (
            None if arguments.keep is None else arguments.keep / f"{entry.replace(':', '_')}_{arguments.orders}.pickle"
        )
        if kept is not None and kept.exists():
            said = pickle.loads(kept.read_bytes())
        else:
            said = listen(name, modes.split("+"), arguments.orders, arguments.data, extra)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(pickle.dumps(said))
        for mode in modes.split("+"):
            orders = [said[mode, order] for order in range(arguments.orders)]
            show(*recording(f"{name}, {mode}", orders, config), peer(name, mode, orders[0], arguments), "")


def _values(given: list[str]) -> dict[str, Any]:
    import yaml

    return {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in given)}


if __name__ == "__main__":
    main()
