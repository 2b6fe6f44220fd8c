"""The node in its own process, and a client that sends images over DDS and collects all outputs."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from loftr_ros.msg import Correspondences, FrontEndStatus, Keyframe, RelativePose
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from loftr_ros.tools.domains import free_domain

# Long enough for a busy machine; every wait ends as soon as its condition holds.
PATIENCE = 40.0
NAME = "/loftr_front_end"
_CODE = "import sys; from loftr_ros.ros.node import main; sys.exit(main(autostart={autostart}))"
_numbers = itertools.count(1)


class NodeProcess:
    """The front end's process; it ends with the `with` block.

    Attributes:
        domain: its ROS_DOMAIN_ID.
    """

    def __init__(
        self,
        folder: Path,
        parameters: dict[str, Any] | None = None,
        *arguments: str,
        autostart: bool = False,
        domain: int | None = None,
    ) -> None:
        """Start it.

        Args:
            folder: for its output.
            parameters: by name; strings are quoted, other values are written as YAML.
            arguments: more ROS arguments.
            autostart: whether it becomes active by itself.
            domain: of another process, to share its domain.
        """
        self._reserved = contextlib.ExitStack()
        self.domain = domain or self._reserved.enter_context(free_domain())
        self._log = folder / f"node-{next(_numbers)}.log"
        command = [sys.executable, "-c", _CODE.format(autostart=autostart), "--ros-args"]
        for name, value in (parameters or {}).items():
            text = f"'{value}'" if isinstance(value, str) else str(value).lower()
            command += ["-p", f"{name}:={text}"]
        environment = os.environ | {
            "ROS_DOMAIN_ID": str(self.domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_LOG_DIR": str(folder / "log"),
            "RCUTILS_COLORIZED_OUTPUT": "0",
        }
        with self._log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=folder
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reserved.close()

    @property
    def said(self) -> str:
        """Its log so far."""
        return self._log.read_text()

    def errors(self, kind: str) -> list[str]:
        """The error lines of one kind."""
        return re.findall(rf"^\[ERROR\].*: \[{kind}\] .*$", self.said, re.MULTILINE)

    def wait_for(self, words: str) -> None:
        """Wait until it has logged these words."""
        end = time.monotonic() + PATIENCE
        while words not in self.said:
            assert time.monotonic() < end, f"waited in vain for {words!r} in:\n{self.said}"
            assert self.process.poll() is None or words in self.said, f"ended without {words!r}:\n{self.said}"
            time.sleep(0.02)

    def exit_code(self, seconds: float = PATIENCE) -> int:
        """Wait for its end."""
        return self.process.wait(timeout=seconds)

    def stop(self, number: signal.Signals, seconds: float = PATIENCE) -> int:
        """Send a signal; returns the exit code, and fails if it takes longer than `seconds`."""
        self.process.send_signal(number)
        return self.exit_code(seconds)

    def threads(self) -> int:
        """Number of its threads."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)[1])


class Lasting:
    """A node that serves several tests, and is started again after a test that ended it or a start that failed.

    Attributes:
        process, client: the node's, as they are now; set by the first `revive`.
    """

    process: NodeProcess
    client: Client

    def __init__(
        self,
        folder: Path,
        parameters: dict[str, Any],
        start: Callable[[NodeProcess, Client], None] = lambda process, client: None,
        kind: type[Client] | None = None,
    ) -> None:
        """Prepare it; `revive` starts it.

        Args:
            folder, parameters: of `NodeProcess`.
            start: brings the new node to where tests expect it.
            kind: class of the client.
        """
        self._start, self._folder, self._parameters, self._kind = start, folder, parameters, kind or Client
        self._stack = contextlib.ExitStack()
        self._is_started = False

    def revive(self) -> bool:
        """Start the node if it does not run; returns whether it did not."""
        if self._is_started and self.process.process.poll() is None:
            return False
        self.close()
        self.process = self._stack.enter_context(NodeProcess(self._folder, self._parameters))
        self.client = self._stack.enter_context(self._kind(self.process.domain))
        self._start(self.process, self.client)
        self._is_started = True
        return True

    def close(self) -> None:
        """End it."""
        self._is_started = False
        self._stack.close()


class Client:
    """Talks to one node; the lists grow as its messages come in.

    Attributes:
        node: the rclpy node, for other uses.
        correspondences, poses, keyframes, statuses, diagnostics, pictures: messages received, oldest first.
    """

    def __init__(self, domain: int, name: str = NAME, image: str = "/image", camera_info: str = "/camera_info") -> None:
        self._context = rclpy.Context()
        self._context.init(args=None, domain_id=domain)
        self._changed = threading.Condition()
        self._name = name
        self._stamp = 1_700_000_000_000_000_000
        self.node = rclpy.create_node("client", context=self._context, start_parameter_services=False)
        self.correspondences: list[Correspondences] = []
        self.poses: list[RelativePose] = []
        self.keyframes: list[Keyframe] = []
        self.statuses: list[FrontEndStatus] = []
        self.diagnostics: list[DiagnosticStatus] = []
        self.pictures: list[Image] = []
        self._collect(Correspondences, f"{name}/correspondences", self.correspondences)
        self._collect(RelativePose, f"{name}/relative_pose", self.poses)
        self._collect(Keyframe, f"{name}/keyframe", self.keyframes)
        self._collect(FrontEndStatus, f"{name}/status", self.statuses)
        self.node.create_subscription(
            DiagnosticArray, "/diagnostics", lambda m: self._add(self.diagnostics, m.status[0]), 1000
        )
        self._images = self.node.create_publisher(Image, image, 10)
        self._compressed = self.node.create_publisher(CompressedImage, f"{image}/compressed", 10)
        self._infos = self.node.create_publisher(CameraInfo, camera_info, 10)
        self._clients: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.try_shutdown()
        self._thread.join()
        self.node.destroy_node()

    # --- what comes out ---

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition on the received messages holds; returns its value."""
        with self._changed:
            # In slices: of the time for which this process and the node are stopped only one counts.
            slices = (self._changed.wait_for(condition, 0.5) for _ in range(round(PATIENCE / 0.5)))
            ended = next(filter(None, slices), None)
            last = self.statuses[-1] if self.statuses else None
            assert ended, f"waited in vain for {what}; the last status is {last}"
            return ended

    def look(self, pictures: bool) -> None:
        """Subscribe to the pictures, or end that."""
        if pictures:
            self._looking = self._collect(Image, f"{self._name}/matches_image", self.pictures)
        else:
            self.node.destroy_subscription(self._looking)

    def status(self, condition: Callable[[FrontEndStatus], bool] = lambda status: True) -> FrontEndStatus:
        """The next status without pending images that fulfils the condition."""
        seen = len(self.statuses)

        def found() -> list[FrontEndStatus]:
            return [s for s in self.statuses[seen:] if not s.frames_pending and condition(s)]

        return self.wait(found, "a status at rest")[0]

    # --- lifecycle, parameters, services ---

    def call(self, kind: type, name: str, request: Any) -> Any:
        """The node's answer to a service call; `name` is below the node's."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f"{self._name}/{name}")
        client = self._clients[name]
        assert client.wait_for_service(timeout_sec=PATIENCE), f"there is no service {name}"
        future = client.call_async(request)
        future.add_done_callback(lambda _: self._add([], None))
        self.wait(future.done, f"an answer of {name}")
        return future.result()

    def trigger(self, name: str) -> Trigger.Response:
        """Call `~/reset` or `~/force_keyframe`."""
        return self.call(Trigger, name, Trigger.Request())

    def transition(self, *names: str) -> bool:
        """Execute lifecycle transitions; returns whether all succeeded."""
        return all(
            self.call(
                ChangeState,
                "change_state",
                ChangeState.Request(transition=Transition(id=getattr(Transition, f"TRANSITION_{name.upper()}"))),
            ).success
            for name in names
        )

    def state(self) -> str:
        """The node's lifecycle state."""
        return str(self.call(GetState, "get_state", GetState.Request()).current_state.label)

    def set(self, **parameters: Any) -> tuple[bool, str]:
        """Set parameters (`__` in a name means a dot); returns whether all were set, and why not."""
        values = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in parameters.items()
        ]
        results = self.call(SetParameters, "set_parameters", SetParameters.Request(parameters=values)).results
        return all(result.successful for result in results), " ".join(result.reason for result in results)

    def parameters(self) -> dict[str, Any]:
        """The node's own parameters, by name: those that can be set."""
        names = self.call(ListParameters, "list_parameters", ListParameters.Request()).result.names
        own = [name for name in names if not name.startswith(("qos_overrides.", "use_sim_time", "start_type_"))]
        values = self.call(GetParameters, "get_parameters", GetParameters.Request(names=own)).values
        return dict(zip(own, map(parameter_value_to_python, values), strict=True))

    def unconfigure(self) -> None:
        """From whatever state to unconfigured."""
        before = {"active": ("deactivate", "cleanup"), "inactive": ("cleanup",)}.get(self.state(), ())
        assert self.transition(*before), f"the node is {self.state()}"

    def bring_back(self, parameters: dict[str, Any]) -> bool:
        """To active with these parameters, whatever an earlier test left behind when it failed; whether it was not."""
        now = self.parameters()
        differing = {name: value for name, value in parameters.items() if now[name] != value}
        if not differing and self.state() == "active":
            return False
        self.unconfigure()
        ok, reason = self.set(**differing)
        assert ok, reason
        assert self.transition("configure", "activate")
        return True

    def reconfigure(self, **parameters: Any) -> None:
        """Restart the active node with other parameters, and connect again."""
        assert self.transition("deactivate", "cleanup")
        ok, reason = self.set(**parameters)
        assert ok, reason
        assert self.transition("configure", "activate")

    # --- what goes in ---

    def stamp(self, seconds: float = 0.1) -> int:
        """The stream's next stamp, in ns."""
        self._stamp += round(seconds * 1e9)
        return self._stamp

    def send(self, *messages: Image | CompressedImage | CameraInfo) -> None:
        """Publish each on its topic."""
        publishers = {Image: self._images, CompressedImage: self._compressed, CameraInfo: self._infos}
        for message in messages:
            publishers[type(message)].publish(message)

    def connect(self, messages: Callable[[], tuple[Any, ...]]) -> None:
        """Send frames until one has been processed: DDS takes its time to connect publishers and subscriptions.

        Args:
            messages: makes the next good frame.
        """
        sent: list[int] = []
        end = time.monotonic() + PATIENCE
        while not any(self.results_of(stamp) for stamp in sent):
            assert time.monotonic() < end, f"no frame came through; status: {self.statuses[-1:]}"
            frame = messages()
            sent.append(nanoseconds(frame[0].header.stamp))
            self.send(*frame)
            with self._changed:
                self._changed.wait_for(lambda: any(self.results_of(stamp) for stamp in sent), 0.2)
        self.status()

    def poses_of(self, stamp: int) -> list[RelativePose]:
        """The poses of the image with a stamp."""
        return [pose for pose in self.poses if nanoseconds(pose.header.stamp) == stamp]

    def poses_for(self, stamp: int) -> list[RelativePose]:
        """The poses of a processed image, once they have arrived: topics do not wait for each other."""
        return list(self.wait(lambda: self.poses_of(stamp), f"poses of the image with stamp {stamp}"))

    def results_of(self, stamp: int) -> list[RelativePose | Keyframe]:
        """The results of the image with a stamp; the first image of a stream only becomes a keyframe."""
        keyframes = [k for k in self.keyframes if nanoseconds(k.stamp) == stamp and k.event == Keyframe.ADDED]
        return [*self.poses_of(stamp), *keyframes]

    def process(self, *messages: Any) -> int:
        """Send a good frame and wait until it is processed; returns its stamp."""
        self.send(*messages)
        stamp = nanoseconds(messages[0].header.stamp)
        self.wait(lambda: self.results_of(stamp), f"results of the image with stamp {stamp}")
        return stamp

    def _collect(self, kind: type, topic: str, messages: list[Any]) -> Any:
        return self.node.create_subscription(kind, topic, lambda message: self._add(messages, message), 1000)

    def _add(self, messages: list[Any], message: Any) -> None:
        with self._changed:
            messages.append(message)
            self._changed.notify_all()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()


def nanoseconds(stamp: Time) -> int:
    """A stamp as one number."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def image_message(image: np.ndarray, stamp: int, frame_id: str = "camera") -> Image:
    """(H, W) uint8 gray as a mono8 message."""
    height, width = image.shape
    message = Image(height=height, width=width, encoding="mono8", step=width, data=image.tobytes())
    message.header.frame_id = frame_id
    message.header.stamp = Time(sec=stamp // 1_000_000_000, nanosec=stamp % 1_000_000_000)
    return message


def camera_info(image: Image, focal: float, model: str = "plumb_bob", distortion: tuple[float, ...] = ()) -> CameraInfo:
    """The calibration of an image, with its principal point in the middle."""
    u, v = (image.width - 1) / 2, (image.height - 1) / 2
    return CameraInfo(
        header=image.header,
        width=image.width,
        height=image.height,
        distortion_model=model,
        d=list(distortion or (0.0,) * 5),
        k=[focal, 0.0, u, 0.0, focal, v, 0.0, 0.0, 1.0],
    )
