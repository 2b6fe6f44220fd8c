"""Both nodes over DDS with what goes wrong on robots: is map -> odom ever wrong, and does ~/status say what is known?

This process publishes parts of a recording as a camera does, and listens. The front end and the back end run as a user
would run them, one process each, and are killed and started again where a scenario says so. With each odometry that
has a `map` -> `odom`, the pose of the camera in the map is held against the truth, in the frame of the map's first
keyframe. A session is written as PART[+EVENT@SECONDS...]; parts are START:STOP of the recording, or SOURCE/START:STOP.

    dirt          every eighth image is spoiled (dirty_stream.py)
    back, front   the node is killed at that time (SIGKILL), and started again 3 s later
    dark          the images of 3 s are black
    again         the session's frames come a second time with the same stamps, as from a recording in a loop
    pause         no images come for 3 s, and with --clock the time stands still, as `ros2 bag play` pauses

With --clock RATE both nodes have `use_sim_time` and this process publishes /clock, 40 times a second, as `ros2 bag play
--clock 40 --rate RATE` does: images come as often, and their stamps advance RATE times as fast as the wall clock.

    .venv/bin/python benchmarks/slam_stream.py --source 'revisits:700?rate=3' --hz 5 \
        --sessions 0:150 1024:1218 'revisits:701?rate=3/0:100' 0:150+dirt 0:150+back@10+front@20

Sessions share map and archive, unless --fresh; the map's frame is that of the first session. With --launch both nodes
are started by `ros2 launch loftr_ros slam.launch.py`, and none can be killed alone.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bad_frames import kind_of
from dirty_stream import MESSAGES, PICTURES, PROFILE, Publisher
from listening import BIN, ROS2_LAUNCH, listening
from live_processes import DOWN, Processes, actions_of, matrix_of, stamp_of
from numpy.typing import NDArray
from recorder import Recorder

from loftr_ros.geometry.se3 import between, inverse, rotation_degrees
from loftr_ros.recordings import open_source
from loftr_ros.ros.output.base_motion import forward_camera
from loftr_ros.ros.output.messages import to_time
from loftr_ros.tools.demo.processes import wait_until

Array = NDArray[np.float64]

EVERY = 8
FIRST_NS = 100 * 10**9  # of a simulation
# What config/slam.rviz and config/slam_foxglove_layout.json show.
SHOWN = [
    *(f"/loftr_front_end/{name}" for name in ("path", "odometry", "landmarks", "matches_image", "status")),
    *(f"/loftr_back_end/{name}" for name in ("path", "pose_graph", "pose", "landmarks", "map_to_odom", "status")),
    "/diagnostics",
]


@dataclass
class Session:
    """One part of a recording, and what happens in it."""

    text: str
    source: str
    start: int
    stop: int
    events: list[tuple[float, str]]

    @classmethod
    def of(cls, text: str, source: str) -> Session:
        """From its text."""
        part, *events = text.split("+")
        found = re.fullmatch(r"(?:(.+)/)?(\d+):(\d+)", part)
        if found is None:
            raise SystemExit(f"{text}: expected START:STOP or SOURCE/START:STOP, then +EVENT@SECONDS")
        timed = [(float(at or 0), name) for name, _, at in (event.partition("@") for event in events)]
        return cls(text, found[1] or source, int(found[2]), int(found[3]), sorted(timed))


@dataclass
class Heard:
    """What came from the nodes."""

    odometry: list[tuple[float, int, Array]] = field(default_factory=list)  # when it came, stamp, pose
    offsets: list[tuple[float, int, Array]] = field(default_factory=list)
    poses: list[tuple[int, Array, float]] = field(default_factory=list)
    back: list[tuple[float, Any]] = field(default_factory=list)
    front: list[Any] = field(default_factory=list)


class SimulatedTime(threading.Thread):
    """Publishes /clock until it is stopped, but not while it is paused."""

    def __init__(self, node: Any, rate: float) -> None:
        """Begin at a hundred seconds, `rate` times as fast as the wall clock."""
        from rosgraph_msgs.msg import Clock

        super().__init__(daemon=True)
        self._publisher, self._message = node.create_publisher(Clock, "/clock", 10), Clock
        self._rate, self._lock = rate, threading.Lock()
        self._began, self._stopped = time.monotonic(), threading.Event()
        self.is_paused = False
        self.start()

    def _now_ns(self) -> int:
        return FIRST_NS + round((time.monotonic() - self._began) * self._rate * 1e9)

    def at(self, stamp_ns: int) -> None:
        """It is that time now."""
        with self._lock:
            self._began = time.monotonic() - (stamp_ns - FIRST_NS) * 1e-9 / self._rate

    def run(self) -> None:
        """Publish."""
        while not self._stopped.wait(1 / 40):
            with self._lock:
                if not self.is_paused:
                    self._publisher.publish(self._message(clock=to_time(self._now_ns())))

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        self.join()


def commands(folder: Path, mode: str, parameters: list[str], launch: bool, sim_time: bool) -> dict[str, list[str]]:
    """Command of each node by its name; the launch file starts both as `front`."""
    if launch:
        places = [f"archive:={folder / 'places'}", f"map_file:={folder / 'map.npz'}"]
        timed = ["use_sim_time:=true"] if sim_time else []
        return {"front": [*ROS2_LAUNCH, "loftr_ros", "slam.launch.py", f"mode:={mode}", *places, *timed]}
    timed = ["-p", "use_sim_time:=true"] if sim_time else []
    front = ["-p", f"mode:={mode}", "-p", f"archive.uri:='{folder / 'places'}'", *parameters, *timed]
    back = ["-p", f"map_file:='{folder / 'map.npz'}'", "-p", "map_save_period:=5.0", *timed]
    return {
        "front": [str(BIN / "loftr_ros"), "node", "--ros-args", *front],
        "back": [str(BIN / "loftr_ros"), "back-end", "--ros-args", *back],
    }


def play(
    session: Session,
    mode: str,
    hz: float,
    folder: Path,
    parameters: list[str],
    launch: bool = False,
    record: Path | None = None,
    clock: float | None = None,
) -> tuple[Heard, dict[int, Array], dict[int, str], str]:
    """Run a session.

    Returns:
        What was heard; the truth, and the kind of dirt, by stamp; the exit codes and the nodes' warnings.
    """
    from diagnostic_msgs.msg import DiagnosticStatus
    from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
    from loftr_ros.msg import FrontEndStatus
    from nav_msgs.msg import Odometry

    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(PROFILE))
    kinds = [each for each in (*PICTURES, *MESSAGES) if each not in ("late", "alone")]
    random, heard = np.random.default_rng(0), Heard()
    truth, spoiled = dict[int, Array](), dict[int, str]()
    actions = actions_of([(at, name) for at, name in session.events if name in ("back", "front")])
    named = {name: at for at, name in session.events}
    part = open_source(session.source, start=session.start, stop=session.stop)
    with part as opened, listening("slam_stream") as (own, environment):

        def on_odometry(message: Any) -> None:
            pose = message.pose.pose
            stamp_ns = stamp_of(message.header)
            heard.odometry.append((time.monotonic(), stamp_ns, matrix_of(pose.position, pose.orientation)))

        def on_offset(message: Any) -> None:
            stamp_ns = stamp_of(message.header) - 100_000_000  # tf_tolerance
            pose = matrix_of(message.transform.translation, message.transform.rotation)
            heard.offsets.append((time.monotonic(), stamp_ns, pose))

        def on_pose(message: Any) -> None:
            pose, covariance = message.pose.pose, np.asarray(message.pose.covariance).reshape(6, 6)
            std = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
            heard.poses.append((stamp_of(message.header), matrix_of(pose.position, pose.orientation), std))

        own.create_subscription(Odometry, "/loftr_front_end/odometry", on_odometry, 100)
        own.create_subscription(TransformStamped, "/loftr_back_end/map_to_odom", on_offset, 100)
        own.create_subscription(PoseWithCovarianceStamped, "/loftr_back_end/pose", on_pose, 100)
        own.create_subscription(FrontEndStatus, "/loftr_front_end/status", heard.front.append, 10)
        own.create_subscription(
            DiagnosticStatus,
            "/loftr_back_end/status",
            lambda message: heard.back.append((time.monotonic(), message)),
            10,
        )
        publisher = Publisher(own, mode)
        made = [(publisher.made(frame), frame.pose) for frame in opened]
        started = commands(folder, mode, parameters, launch, clock is not None)
        nodes = Processes(environment, folder, started)
        sim_time = None if clock is None else SimulatedTime(own, clock)
        recorder = None if record is None else Recorder(own, record, SHOWN)
        try:
            for name in started:
                nodes.start(name)
            # Of a loaded map it says that the robot is not localized.
            wait_until(
                lambda: bool(heard.front) and any(re.search("waits|not loc", each.message) for _, each in heard.back),
                90,
                "both nodes",
            )
            time.sleep(1)
            rounds = 2 if "again" in named else 1
            begun, now_ns = time.monotonic(), time.time_ns() if clock is None else FIRST_NS
            for number in range(rounds * len(made)):
                messages, pose = made[number % len(made)]
                seconds = number / hz
                if "pause" in named and named["pause"] <= seconds:
                    del named["pause"]
                    begun += DOWN
                    if sim_time is not None:
                        sim_time.is_paused = True
                time.sleep(max(begun + seconds - time.monotonic(), 0))
                while actions and actions[0][0] <= seconds:
                    _, what, name = actions.pop(0)
                    getattr(nodes, what)(name)
                kind = kind_of(number, EVERY, kinds) if "dirt" in named else ""
                if "dark" in named and named["dark"] <= seconds < named["dark"] + DOWN:
                    kind = "black"
                stamp_ns = now_ns + round((number % len(made)) * 1e9 / hz * (clock or 1.0))
                if sim_time is not None:
                    sim_time.at(stamp_ns)
                    sim_time.is_paused = False
                publisher.send(messages, stamp_ns, kind, random)
                assert pose is not None, "the recording has no truth"
                truth[stamp_ns], spoiled[stamp_ns] = pose, kind
            time.sleep(3)
            nodes.check()
        finally:
            codes = nodes.end()
            if sim_time is not None:
                sim_time.stop()
            if recorder is not None:
                recorder.close()
                print(f"  recorded: {recorder.counts}")
    words = [f"exit codes {list(codes.values())}", *nodes.warnings()]
    return heard, truth, spoiled, "\n".join(words)


def report(session: Session, heard: Heard, truth: dict[int, Array], origin: Array | None) -> None:
    """Print what the nodes said, and how wrong it was.

    Args:
        session: what was played.
        heard: what was heard.
        truth: (4, 4) T_world_camera by stamp.
        origin: (4, 4) T_world_camera of the map's first keyframe; None if it is of another place.
    """
    mount = forward_camera()
    print(f"  {len(truth)} images, {len(heard.odometry)} with odometry, {len(heard.offsets)} with map -> odom")
    off, turned, jumps, before = [], [], [], None
    for came, stamp, offset in heard.offsets:
        # A recording that comes twice has the same stamps.
        own = [pose for at, of, pose in heard.odometry if of == stamp and abs(at - came) < 2]
        if not own or stamp not in truth:
            continue
        camera = inverse(mount) @ offset @ own[-1] @ mount
        if before is not None:
            jumps.append(float(np.linalg.norm(between(before, offset)[:3, 3])))
        before = offset
        if origin is not None:
            error = between(between(origin, truth[stamp]), camera)
            off.append(float(np.linalg.norm(error[:3, 3])))
            turned.append(rotation_degrees(error[:3, :3]))
    if off:
        print(
            f"  camera in the map: off by {np.median(off):.3f} m (median), {max(off):.3f} m at most, "
            f"{max(turned):.2f} deg at most; map -> odom moved by {max([0.0, *jumps]):.3f} m at most"
        )
    sure = []
    for stamp, base, std in heard.poses:
        if origin is not None and stamp in truth:
            camera = inverse(mount) @ base @ mount
            sure.append((float(np.linalg.norm(between(between(origin, truth[stamp]), camera)[:3, 3])), std))
    if sure:
        ratios = [error / std for error, std in sure]
        print(
            f"  ~/pose: {len(sure)}, off by {max(error for error, _ in sure):.3f} m at most, by "
            f"{np.median(ratios):.2f} (median) and {max(ratios):.2f} (most) of its largest standard deviation"
        )
    begun = heard.back[0][0]
    said, last = [], ""
    for at, status in heard.back:
        if status.message.partition(";")[0] != last:
            last = status.message.partition(";")[0]
            said.append(f"{at - begun:.0f} s {last}")
    print(f"  status: {', '.join(said)}")
    values = {pair.key: pair.value for pair in heard.back[-1][1].values}
    print("  " + ", ".join(f"{name}: {values[name]}" for name in values if "loops" in name or "keyframes" in name
                           or "parts" in name or "error" in name or "dropped" in name))  # fmt: skip
    front = heard.front[-1]
    errors = Counter(dict(zip(front.error_kinds, front.error_counts, strict=True)))
    print(
        f"  front end: received {front.frames_received}, processed {front.frames_processed}, dropped "
        f"{front.frames_dropped}, segment {front.segment}, errors {dict(errors)}"
    )


def main() -> None:
    """Run the sessions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="revisits:700?rate=3")
    parser.add_argument("--sessions", nargs="+", required=True)
    parser.add_argument("--mode", default="rgbd", choices=["mono", "stereo", "rgbd"])
    parser.add_argument("--hz", type=float, default=5.0)
    parser.add_argument("--fresh", action="store_true", help="each session begins without a map and an archive")
    parser.add_argument("--parameter", action="append", default=[], help="of the front end, name:=value")
    parser.add_argument(
        "--launch", action="store_true", help="by the real launch file; needs a ROS installation's launch"
    )
    parser.add_argument("--clock", type=float, metavar="RATE", help="the nodes take the time from /clock")
    parser.add_argument("--record", type=Path, help="folder of an MCAP bag of the last session, which must not exist")
    parser.add_argument("--log", action="store_true", help="print the nodes' warnings, too")
    arguments = parser.parse_args()
    parameters = [word for parameter in arguments.parameter for word in ("-p", parameter)]
    origins: dict[str, Array] = {}
    home = ""
    with tempfile.TemporaryDirectory() as shared:
        for number, text in enumerate(arguments.sessions):
            session = Session.of(text, arguments.source)
            folder = Path(shared) / (f"own{number}" if arguments.fresh else "shared")
            folder.mkdir(exist_ok=True)
            print(
                f"{session.source}, {text}, {arguments.mode}, {arguments.hz:g} Hz"
                + ("" if arguments.clock is None else f", /clock at {arguments.clock:g}"),
                flush=True,
            )
            heard, truth, _, words = play(
                session,
                arguments.mode,
                arguments.hz,
                folder,
                parameters,
                arguments.launch,
                arguments.record if number == len(arguments.sessions) - 1 else None,
                arguments.clock,
            )
            if arguments.fresh or not home:
                home, origins = session.source, {session.source: truth[heard.odometry[0][1]]}
            report(session, heard, truth, origins.get(session.source))
            if arguments.log:
                print(words)
            print(flush=True)


if __name__ == "__main__":
    main()
