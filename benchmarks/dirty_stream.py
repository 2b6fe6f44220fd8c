"""The real node over DDS with dirt in the stream: what it says of each image, and what it says is wrong.

This process publishes a recording with the transport profile of the launch file (docs/transport.md), the node runs as
a user would run it. Every eighth image is spoiled, a kind after
the other: images of `bad_frames.py` (black, white, noise, a hand before the lens and others), images that are lost,
late, sent twice, of another size, of an unknown encoding, cut off, or without their depth or right image. Every image
that arrives and shows the scene should be located (OK, or LOW_PARALLAX and PLANAR as the recording begins with one
camera), nothing spoiled may be, the trajectory should stay in its segment, and each error should be named.

    .venv/bin/python benchmarks/dirty_stream.py [--mode rgbd] [--hz 15] [--every 8] [--parameter NAME:=VALUE]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bad_frames import KINDS, kind_of
from listening import BIN, ROS2_LAUNCH, listening

from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.recordings import open_source
from loftr_ros.recordings.reading import SourceFrame
from loftr_ros.ros.output.messages import to_time
from loftr_ros.tools.demo.processes import Child, wait_until
from loftr_ros.tools.player.messages import depth_messages, frame_messages, right_messages

PROFILE = Path(__file__).resolve().parents[1] / "config" / "fastdds.xml"
MESSAGES = ("lost", "size", "late", "encoding", "twice", "short", "alone")
PICTURES = ("black", "white", "noise", "hand", "covered", "torn", "other scene")
# Of a spoiled image these show the scene, or a part of it.
SHOWN = ("late", "twice", "covered", "")
LATE = 0.4  # s


def spoiled_image(message: Any, kind: str, random: np.random.Generator) -> Any:
    """The image message, of another kind; it is the same object unless nothing is done."""
    gray = np.asarray(message.data, np.uint8).reshape(message.height, -1)[:, : message.width]
    if kind == "covered":
        gray = gray.copy()
        gray[:, : gray.shape[1] * 3 // 4] = 10
    elif kind in KINDS:
        gray = KINDS[kind](gray, random)
    elif kind == "size":
        gray = np.ascontiguousarray(gray[::2, ::2])
    message.height, message.width, message.step = gray.shape[0], gray.shape[1], gray.shape[1]
    message.data = gray.tobytes()[: gray.size // 2 if kind == "short" else None]
    message.encoding = "strange" if kind == "encoding" else "mono8"
    return message


@dataclass(frozen=True)
class Sent:
    """An image, with its stamp in nanoseconds."""

    stamp_ns: int
    kind: str


class Publisher:
    """Publishes the frames of a recording with dirt between them."""

    def __init__(self, node: Any, mode: str) -> None:
        from sensor_msgs.msg import CameraInfo, Image

        self._image = node.create_publisher(Image, "image", 10)
        self._info = node.create_publisher(CameraInfo, "camera_info", 10)
        self._beside: list[Any] = []
        self._beside_of: Callable[[SourceFrame], Sequence[Any]] = lambda frame: ()
        if mode == "rgbd":
            self._beside = [node.create_publisher(Image, "depth/image", 10)]
            self._beside_of = lambda frame: depth_messages(frame)[:1]
        elif mode == "stereo":
            names = {"right/image": Image, "right/camera_info": CameraInfo}
            self._beside = [node.create_publisher(kind, name, 10) for name, kind in names.items()]
            self._beside_of = lambda frame: right_messages(frame, compressed=False)

    def made(self, frame: SourceFrame) -> list[tuple[Any, Any]]:
        """The messages of a frame with their publishers, the image last."""
        image, info = frame_messages(frame, compressed=False, restamped=True)
        beside = list(zip(self._beside, self._beside_of(frame), strict=True))
        return [*beside, (self._info, info), (self._image, image)]

    def send(self, messages: list[tuple[Any, Any]], stamp_ns: int, kind: str, random: np.random.Generator) -> None:
        """Publish the messages of a frame, spoiled by a kind of MESSAGES or PICTURES; "" for none."""
        if kind == "lost":
            return
        if kind == "late":
            time.sleep(LATE)
        for publisher, message in messages:
            message.header.stamp = to_time(stamp_ns)
            if publisher is self._image:
                message = spoiled_image(message, kind, random)
            if kind != "alone" or publisher not in self._beside:
                publisher.publish(message)
        if kind == "twice":
            self._image.publish(messages[-1][1])


def run(
    source: str, mode: str, hz: float, every: int, frames: int, extra: list[str], launch: bool = False
) -> tuple[list[Sent], dict[int, set[str]], Any, str, int]:
    """Publish a recording and listen.

    Args:
        source: to open.
        mode: of the node.
        hz: images a second; the recording's rate divided by a whole number is nearest to it.
        every: of so many images one is spoiled.
        frames: of the recording, at most.
        extra: arguments of the node.
        launch: whether it is started by the real `ros2 launch`.

    Returns:
        What was sent; the statuses of the poses by stamp; the last FrontEndStatus; the node's log and its exit code.
    """
    from loftr_ros.msg import FrontEndStatus, RelativePose

    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(PROFILE))
    kinds = [
        kind for pair in zip(PICTURES, MESSAGES, strict=True) for kind in pair if mode != "mono" or kind != "alone"
    ]
    random = np.random.default_rng(0)
    poses: list[RelativePose] = []
    statuses: list[FrontEndStatus] = []
    with (
        open_source(source, stop=frames) as opened,
        listening("dirty_stream") as (own, environment),
        tempfile.TemporaryDirectory() as folder,
    ):
        own.create_subscription(RelativePose, "/loftr_front_end/relative_pose", poses.append, 100)
        own.create_subscription(FrontEndStatus, "/loftr_front_end/status", statuses.append, 10)
        publisher, step = Publisher(own, mode), max(round(opened.rate / hz), 1)
        made = [publisher.made(frame) for number, frame in enumerate(opened) if number % step == 0]
        command = [str(BIN / "loftr_ros"), "node", "--ros-args", "-p", f"mode:={mode}", *extra]
        if launch:
            command = [*ROS2_LAUNCH, "loftr_ros", "front_end.launch.py", f"mode:={mode}"]
        node = Child("node", command, Path(folder) / "node.log", environment)
        try:
            wait_until(lambda: bool(statuses), 60, "the node's status", [node])
            time.sleep(1)  # until the topics have found each other
            sent, start, now_ns = [], time.monotonic(), time.time_ns()
            for number, messages in enumerate(made):
                kind = kind_of(number, every, kinds)
                stamp_ns = now_ns + round(number * 1e9 / hz)
                time.sleep(max(start + number / hz - time.monotonic(), 0))
                publisher.send(messages, stamp_ns, kind, random)
                sent.append(Sent(stamp_ns, kind))
            time.sleep(3)
            node.check()
        finally:
            node.interrupt()
            code = node.close()
        log = node.output
    said: dict[int, set[str]] = {}
    for pose in poses:
        stamp_ns = pose.header.stamp.sec * 10**9 + pose.header.stamp.nanosec
        said.setdefault(stamp_ns, set()).add(PoseStatus(pose.status).name)
    return sent, said, statuses[-1], log, code


def report(sent: list[Sent], said: dict[int, set[str]], status: Any, code: int) -> None:
    """Print what became of each kind, and of the whole."""
    outcome: dict[str, Counter[str]] = {}
    for each in sent:
        found = said.get(each.stamp_ns)
        best = "no result" if found is None else "OK" if "OK" in found else "/".join(sorted(found))
        outcome.setdefault(each.kind, Counter())[best] += 1
    for kind, counts in outcome.items():
        print(f"  {kind or 'good':12} " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    good = [said.get(each.stamp_ns) for each in sent if not each.kind]
    processed = [each for each in good if each is not None]
    located = sum(not each & {"DOUBTFUL", "TOO_FEW_MATCHES"} or "OK" in each for each in processed)
    wrong = sum("OK" in said.get(each.stamp_ns, set()) for each in sent if each.kind not in SHOWN)
    print(
        f"  {len(good)} good images: {len(processed)} processed, {located} of these located; {wrong} spoiled ones "
        f"called OK; segment {status.segment}; received {status.frames_received}, dropped {status.frames_dropped}, "
        f"unpaired {status.frames_unpaired}, failed {status.frames_failed}; by optical flow {status.frames_by_flow}"
    )
    total = list(status.stages).index("total")
    print(
        f"  errors {dict(zip(status.error_kinds, status.error_counts, strict=True))}; total p50 "
        f"{1e3 * status.latency_median[total]:.0f} ms, p99 {1e3 * status.latency_p99[total]:.0f} ms; the node's exit "
        f"code after Ctrl-C: {code}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="../shared/data/sevenscenes")
    parser.add_argument("--mode", nargs="+", default=["mono"], choices=["mono", "stereo", "rgbd"])
    parser.add_argument("--hz", type=float, default=15.0)
    parser.add_argument("--every", type=int, default=8, help="of so many images one is spoiled")
    parser.add_argument("--frames", type=int, default=240, help="of the recording, at most")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--parameter", action="append", default=[], help="of the node, name:=value; may be repeated")
    parser.add_argument("--log", action="store_true", help="print the node's log, too")
    parser.add_argument(
        "--launch", action="store_true", help="by the real launch file; needs a ROS installation's launch"
    )
    arguments = parser.parse_args()
    if arguments.launch and arguments.parameter:
        parser.error("--parameter is for the node alone; front_end.launch.py takes a file of parameters")
    extra = [word for parameter in arguments.parameter for word in ("-p", parameter)]
    for mode in arguments.mode:
        for _ in range(arguments.turns):
            print(f"{arguments.source}, {mode}, {arguments.hz:g} Hz, one of {arguments.every} spoiled", flush=True)
            sent, said, status, log, code = run(
                arguments.source, mode, arguments.hz, arguments.every, arguments.frames, extra, arguments.launch
            )
            report(sent, said, status, code)
            if arguments.log:
                print(log)


if __name__ == "__main__":
    main()
