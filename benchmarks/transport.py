"""Fate of every image between player and node: two processes over DDS, started as in the README.

For each mode and rate: images published by the player; images received, processed, displaced by a newer image, unpaired
or refused by the node; images reported lost by the middleware; and images pending three seconds after the end. No
settings are changed; images are raw, 640x480. The exit code is 1 if an image was lost without a partner, or never
reached the node.

    .venv/bin/python benchmarks/transport.py [--modes mono stereo rgbd] [--hz 2 30] [--seconds 60]
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from loftr_ros.tools.demo.processes import Child, wait_until
from loftr_ros.tools.domains import own_domain

BIN = Path(sys.executable).parent
# Seconds after the last image: unpaired ones are given up by then.
REST = 5.0


@dataclass(frozen=True)
class Count:
    """Counts of the images of one run."""

    mode: str
    hz: float
    published: int
    received: int
    processed: int
    displaced: int
    unpaired: int
    failed: int
    pending: int
    lost: int

    @property
    def is_complete(self) -> bool:
        """Whether every image was processed or displaced by a newer one."""
        return self.published == self.processed + self.displaced

    def row(self) -> str:
        """Of the table in docs/transport.md."""
        counts = (self.published, self.received, self.processed, self.displaced, self.unpaired, self.failed,
                  self.pending, self.lost)  # fmt: skip
        return f"| {self.mode} | {self.hz:g} | " + " | ".join(map(str, counts)) + " |"


HEAD = """\
| mode | Hz | published | received | processed | displaced | without partner | refused | pending | messages lost |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def measure(source: str, mode: str, hz: float, seconds: float, extra: list[str], play: list[str]) -> Count:
    """Play a source at a rate for some seconds, and count the images."""
    import rclpy
    from loftr_ros.msg import FrontEndStatus
    from rclpy.executors import SingleThreadedExecutor

    with own_domain() as domain, tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, ROS_DOMAIN_ID=str(domain))
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        watcher = rclpy.create_node("transport_watcher", context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(watcher)
        statuses: list[FrontEndStatus] = []
        watcher.create_subscription(FrontEndStatus, "/loftr_front_end/status", statuses.append, 10)
        node_command = [str(BIN / "loftr_ros"), "node", "--ros-args", "-p", f"mode:={mode}", *extra]
        play_command = [str(BIN / "loftr_ros"), "play", source, "--mode", mode, "--hz", str(hz), "--loop"]
        play_command += ["--duration", str(seconds), "-q", *play]
        node = Child("node", node_command, Path(folder) / "node.log", environment)
        try:

            def active() -> bool:
                executor.spin_once(timeout_sec=0.05)
                return "waiting for images" in node.output

            wait_until(active, 180, "the node to become active", [node])
            player = Child("player", play_command, Path(folder) / "player.log", environment)
            try:
                while player.exit_code is None:
                    node.check()
                    executor.spin_once(timeout_sec=0.2)
            finally:
                player.close()
            said = re.search(r"^(\d+) frames in", player.output, re.MULTILINE)
            assert said is not None, player.output
            end = time.monotonic() + REST
            while time.monotonic() < end:
                executor.spin_once(timeout_sec=0.2)
            last = statuses[-1]
            warnings = [line for line in node.output.splitlines() if "[WARN]" in line or "[ERROR]" in line]
            print("".join(f"    {line}\n" for line in warnings), end="", file=sys.stderr)
        finally:
            node.close()
            watcher.destroy_node()
            context.try_shutdown()
    return Count(
        mode,
        hz,
        int(said.group(1)),
        last.frames_received,
        last.frames_processed,
        last.frames_dropped,
        last.frames_unpaired,
        last.frames_failed,
        last.frames_pending,
        last.messages_lost,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="rendered", help="what to play; it needs all modes' images")
    parser.add_argument("--modes", nargs="*", default=["mono", "stereo", "rgbd"])
    parser.add_argument("--hz", type=float, nargs="*", default=[2.0, 30.0], help="rates to play at")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long for each")
    parser.add_argument("--parameter", action="append", default=[], help="of the node, name:=value; may be repeated")
    parser.add_argument("--play", action="append", default=[], help="further option of the player; may be repeated")
    arguments = parser.parse_args()
    extra = [word for parameter in arguments.parameter for word in ("-p", parameter)]
    print(HEAD)
    counts = []
    for mode in arguments.modes:
        for hz in arguments.hz:
            counts.append(measure(arguments.source, mode, hz, arguments.seconds, extra, arguments.play))
            print(counts[-1].row(), flush=True)
    return 0 if all(count.is_complete for count in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
