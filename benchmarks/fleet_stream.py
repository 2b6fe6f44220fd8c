"""Several robots over DDS and one back end over them: one map, map -> odom of each robot, and what goes wrong.

Each robot has a player (`loftr_ros play`), a front end in a namespace of its own with an archive of its own
(`fleet.share`), and all have one back end, each a process as docs/fleet.md starts them. Robots are written as
NAME=PART[,PART...][+front@SECONDS]: the parts of the recording are played one after the other, with the stamps that
they have there, so a part that was earlier makes the robot's stamps jump back. `+front@SECONDS` kills its front end
(SIGKILL), which is started again 3 s later; `--back SECONDS` does so with the back end. Times: since the first image.

    .venv/bin/python benchmarks/fleet_stream.py --robots ada=0:150 bob=1080:1220
    .venv/bin/python benchmarks/fleet_stream.py --robots ada=0:150+front@20 bob=1150:1220,1080:1150 --back 30

The camera in the map is held against the truth, in the frame of the map's first keyframe, whichever robot's it is.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from listening import BIN, ROS2_LAUNCH, listening
from live_processes import Processes, actions_of, matrix_of, stamp_of
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import between, inverse, rotation_degrees
from loftr_ros.recordings import open_source
from loftr_ros.ros.output.base_motion import forward_camera
from loftr_ros.tools.demo.processes import Child, wait_until

Array = NDArray[np.float64]

PATIENCE = 120.0  # s for the nodes to start, and for the players to draw their frames


@dataclass
class Robot:
    """What a robot sees, and when its front end is killed."""

    name: str
    parts: list[tuple[int, int]]
    kills: list[float]

    @classmethod
    def of(cls, text: str) -> Robot:
        """From its text."""
        name, _, rest = text.partition("=")
        parts, *events = rest.split("+")
        found = [re.fullmatch(r"(\d+):(\d+)", part) for part in parts.split(",")]
        killed = [re.fullmatch(r"front@([\d.]+)", event) for event in events]
        if not name or not all(found) or not all(killed):
            raise SystemExit(f"{text}: expected NAME=START:STOP[,START:STOP...][+front@SECONDS...]")
        return cls(
            name, [(int(part[1]), int(part[2])) for part in found if part], [float(at[1]) for at in killed if at]
        )


@dataclass
class Heard:
    """What came of a robot: when it came, the image's stamp, and the message or pose."""

    images: list[float] = field(default_factory=list)
    odometry: list[tuple[float, int, Array]] = field(default_factory=list)
    offsets: list[tuple[float, int, Array]] = field(default_factory=list)
    loops: Counter[str] = field(default_factory=Counter)
    front: list[Any] = field(default_factory=list)


@dataclass
class HeardBack:
    """What came of the back end."""

    status: list[tuple[float, Any]] = field(default_factory=list)
    path: list[Any] = field(default_factory=list)
    frames: Counter[str] = field(default_factory=Counter)  # of the odometry that map -> odom was said of


def commands(robots: list[Robot], arguments: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Command of each node by its name, as docs/fleet.md has them."""
    found = {}
    for robot in robots:
        archive, odom = folder / f"places_{robot.name}", "odom" if arguments.same_frames else f"{robot.name}/odom"
        if arguments.launch:
            file = folder / f"{robot.name}.yaml"
            file.write_text(f"/**:\n  ros__parameters:\n    odometry:\n      odom_frame: {odom}\n")
            found[robot.name] = [
                *ROS2_LAUNCH, "loftr_ros", "front_end.launch.py", f"namespace:={robot.name}", f"mode:={arguments.mode}",
                f"robot_name:={robot.name}", f"archive:={archive}", "share_places:=true", f"params_file:={file}",
            ]  # fmt: skip
            continue
        values = {"mode": arguments.mode, "robot_name": robot.name, "archive.uri": f"'{archive}'",
                  "fleet.share": "true", "odometry.odom_frame": odom}  # fmt: skip
        given = [f"{name}:={value}" for name, value in values.items()] + arguments.parameter
        found[robot.name] = [str(BIN / "loftr_ros"), "node", "--ros-args", "-r", f"__ns:=/{robot.name}"]
        found[robot.name] += [word for each in given for word in ("-p", each)]
    fronts = ",".join(f"/{robot.name}/loftr_front_end" for robot in robots)
    back = {"front_ends": fronts, "map_file": f"'{folder / 'map.npz'}'", "map_save_period": "5.0"}
    found["back"] = [str(BIN / "loftr_ros"), "back-end", "--ros-args"]
    found["back"] += [word for name, value in back.items() for word in ("-p", f"{name}:={value}")]
    return found


def subscribe(own: Any, robots: list[Robot], back: HeardBack) -> dict[str, Heard]:
    """Listen to all that the nodes say."""
    from diagnostic_msgs.msg import DiagnosticStatus
    from geometry_msgs.msg import TransformStamped
    from loftr_ros.msg import FrontEndStatus, LoopClosure
    from nav_msgs.msg import Odometry
    from nav_msgs.msg import Path as PathMessage
    from sensor_msgs.msg import CameraInfo

    heard = {robot.name: Heard() for robot in robots}

    def on_odometry(name: str) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            pose = message.pose.pose
            heard[name].odometry.append(
                (time.monotonic(), stamp_of(message.header), matrix_of(pose.position, pose.orientation))
            )

        return take

    def on_offset(name: str) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            pose = matrix_of(message.transform.translation, message.transform.rotation)
            stamp_ns = stamp_of(message.header) - 100_000_000  # tf_tolerance
            heard[name].offsets.append((time.monotonic(), stamp_ns, pose))
            back.frames[message.child_frame_id] += 1

        return take

    def on_loop(name: str) -> Callable[[Any], None]:
        return lambda message: heard[name].loops.update([message.matched_robot])

    for robot in robots:
        at = f"/{robot.name}/loftr_front_end"
        own.create_subscription(Odometry, f"{at}/odometry", on_odometry(robot.name), 100)
        own.create_subscription(LoopClosure, f"{at}/loop_closures", on_loop(robot.name), 100)
        own.create_subscription(FrontEndStatus, f"{at}/status", heard[robot.name].front.append, 10)
        own.create_subscription(
            TransformStamped, f"/loftr_back_end/{robot.name}/map_to_odom", on_offset(robot.name), 100
        )
        images = heard[robot.name].images
        own.create_subscription(
            CameraInfo, f"/{robot.name}/camera_info", lambda _, images=images: images.append(time.monotonic()), 10
        )

    own.create_subscription(PathMessage, "/loftr_back_end/path", back.path.append, 1)
    own.create_subscription(
        DiagnosticStatus, "/loftr_back_end/status", lambda message: back.status.append((time.monotonic(), message)), 10
    )
    return heard


def run(
    robots: list[Robot], arguments: argparse.Namespace, folder: Path
) -> tuple[dict[str, Heard], HeardBack, float, str]:
    """Play to all robots.

    Returns:
        What was heard of each, and of the back end; when the first image came; exit codes and warnings.
    """
    back = HeardBack()
    with listening("fleet_stream") as (own, environment):
        heard = subscribe(own, robots, back)
        nodes = commands(robots, arguments, folder)
        processes = Processes(environment, folder, nodes)

        def player(robot: Robot, part: tuple[int, int]) -> Child:
            command = [str(BIN / "loftr_ros"), "play", arguments.source, "--mode", arguments.mode, "--hz"]
            command += [str(arguments.hz), "--namespace", robot.name, "--wait", str(PATIENCE), "--quiet"]
            return processes.begin(
                f"player of {robot.name}", [*command, "--start", str(part[0]), "--stop", str(part[1])]
            )

        begun = 0.0
        try:
            for name in nodes:
                processes.start(name)
            wait_until(lambda: bool(back.status) and all(each.front for each in heard.values()), PATIENCE, "the nodes")
            waiting = {robot.name: robot.parts[1:] for robot in robots}
            players = {robot.name: player(robot, robot.parts[0]) for robot in robots}
            wait_until(lambda: any(each.images for each in heard.values()), PATIENCE, "images", list(players.values()))
            begun = min(each.images[0] for each in heard.values() if each.images)
            kills = [(at, robot.name) for robot in robots for at in robot.kills] + [
                (at, "back") for at in arguments.back
            ]
            actions = actions_of(kills)
            while players:
                time.sleep(0.05)
                while actions and actions[0][0] <= time.monotonic() - begun:
                    _, what, name = actions.pop(0)
                    getattr(processes, what)(name)
                for robot in robots:
                    ended = players.get(robot.name)
                    if ended is None or ended.exit_code is None:
                        continue
                    if ended.exit_code:
                        ended.check()
                    processes.forget(f"player of {robot.name}")
                    del players[robot.name]
                    if waiting[robot.name]:
                        players[robot.name] = player(robot, waiting[robot.name].pop(0))
                processes.check()
            time.sleep(5)
            processes.check()
        finally:
            codes = processes.end()
    return heard, back, begun, "\n".join([f"exit codes {codes}", *processes.warnings()])


def report(
    robots: list[Robot], heard: dict[str, Heard], back: HeardBack, begun: float, truth: dict[int, Array]
) -> None:
    """Print what was said, and how wrong it was.

    Args:
        robots: that took part.
        heard: of each.
        back: of the back end.
        begun: when the first image came.
        truth: (4, 4) T_world_camera by stamp, of all parts.
    """
    mount, home = forward_camera(), None
    for message in back.path:
        home = next(
            (
                stamp_of(each.header)
                for each in message.poses
                if np.allclose(matrix_of(each.pose.position, each.pose.orientation), np.eye(4), atol=1e-6)
            ),
            home,
        )
    for robot in robots:
        each, played = heard[robot.name], sum(stop - start for start, stop in robot.parts)
        off, turned, offsets = [], [], []
        for came, stamp, offset in each.offsets:
            # A part that comes twice has the same stamps.
            own = [pose for at, of, pose in each.odometry if of == stamp and abs(at - came) < 3]
            if own:
                offsets.append(came)
            if own and stamp in truth and home is not None:
                camera = inverse(mount) @ offset @ own[-1] @ mount
                error = between(between(truth[home], truth[stamp]), camera)
                off.append(float(np.linalg.norm(error[:3, 3])))
                turned.append(rotation_degrees(error[:3, :3]))
        front = each.front[-1]
        print(
            f"  {robot.name}: {played} images, {len(each.odometry)} with odometry, {len(offsets)} with map -> odom"
            + (f", the first {offsets[0] - begun:.0f} s after the first image" if offsets else "")
            + f"; loops with {dict(each.loops)}; received {front.frames_received}, dropped {front.frames_dropped}, "
            f"segment {front.segment}, errors {dict(zip(front.error_kinds, front.error_counts, strict=True))}"
        )
        if off:
            print(
                f"    camera in the map: off by {np.median(off):.3f} m (median), {max(off):.3f} m at most, "
                f"{max(turned):.2f} deg at most, of {len(off)}"
            )
    said, last = [], ""
    for at, status in back.status:
        if status.message != last:
            last = status.message
            said.append(f"{at - begun:.0f} s {last[:150]}")
    print("  back end: " + ", ".join(said[:14]) + (f" ... ({len(said) - 14} more)" if len(said) > 14 else ""))
    values = {pair.key: pair.value for pair in back.status[-1][1].values}
    words = ("loops", "keyframes", "parts", "error", "dropped", "trajectories", "robot")
    print("  " + ", ".join(f"{name}: {value[:160]}" for name, value in values.items() if any(w in name for w in words)))
    print(f"  map -> odom: {dict(back.frames)}; path of {len(back.path[-1].poses) if back.path else 0} keyframes")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="revisits:700?rate=3")
    parser.add_argument("--robots", nargs="+", default=["ada=0:150", "bob=1080:1220"])
    parser.add_argument("--back", nargs="*", type=float, default=[], help="seconds at which the back end is killed")
    parser.add_argument("--mode", default="rgbd", choices=["mono", "stereo", "rgbd"])
    parser.add_argument("--hz", type=float, default=3.0)
    parser.add_argument("--same-frames", action="store_true", help="leave odometry.odom_frame at `odom` on all robots")
    parser.add_argument("--parameter", action="append", default=[], help="of the front ends, name:=value")
    parser.add_argument("--launch", action="store_true", help="front ends by the real launch file")
    parser.add_argument("--log", action="store_true", help="print the nodes' warnings, too")
    arguments = parser.parse_args()
    robots = [Robot.of(text) for text in arguments.robots]
    truth: dict[int, Array] = {}
    for robot in robots:
        for start, stop in robot.parts:
            with open_source(arguments.source, start=start, stop=stop) as source:
                truth |= {frame.stamp_ns: frame.pose for frame in source if frame.pose is not None}
    print(f"{arguments.source}, {' '.join(arguments.robots)}, {arguments.mode}, {arguments.hz:g} Hz"
          + (", equal frames" if arguments.same_frames else "")
          + "".join(f", the back end killed after {at:g} s" for at in arguments.back), flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        heard, back, begun, words = run(robots, arguments, Path(folder))
        report(robots, heard, back, begun, truth)
        if arguments.log:
            print(words)


if __name__ == "__main__":
    main()
