"""Runs the demo: starts two processes, records their output, and always stops them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from loftr_ros.extras import why_no_plots
from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.frontend.matcher_settings import RANDOM
from loftr_ros.matcher.checkpoints.files import WeightsError
from loftr_ros.matcher.config import AUTO
from loftr_ros.recordings import SourceError
from loftr_ros.ros.transport import SharedMemory, provide_profile
from loftr_ros.tools.demo.processes import Child, DemoError, wait_until
from loftr_ros.tools.demo.sequence import Sequence, prepare
from loftr_ros.tools.domains import DomainError, own_domain
from loftr_ros.tools.params_file import ParamsFileError, node_parameters
from loftr_ros.weights import find_weights

# Time limits of the steps, in seconds.
_UP, _CONFIGURED, _ACTIVE = 90.0, 180.0, 30.0
_SILENCE = 30.0
_LAST_FRAMES = 3.0  # for messages in transit after the last frame
_STATUS_PERIOD = 0.2
_WINDOW = 20000  # window of the latencies: all frames


@dataclass(frozen=True)
class Settings:
    """Arguments of `run_demo`. An empty text leaves a parameter to `params_file`, or else to the node."""

    source: str
    output: Path
    network: str
    weights: str
    device: str
    precision: str
    params_file: Path | None
    rate: float
    hz: float | None
    frames: int | None
    mode: str = ""
    archive: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True

    @cached_property
    def file_values(self) -> Mapping[str, Any]:
        """The node's parameters in the parameter file.

        Raises:
            ParamsFileError: it cannot be read, or has no parameters for the node.
        """
        return {} if self.params_file is None else node_parameters(self.params_file)

    @property
    def played_mode(self) -> str:
        """The front end's mode, which decides what is published; empty for the default."""
        return self.mode or str(self.file_values.get("mode", ""))


def run_demo(
    source: str = "rendered",
    *,
    output: Path = Path("demo"),
    weights: str = "",
    network: str = "",
    device: str = "",
    precision: str = "",
    params_file: Path | None = None,
    rate: float = 1.0,
    hz: float | None = None,
    frames: int | None = None,
    mode: str = "",
    archive: str = "",
    start: int = 0,
    step: int = 1,
    topic: str | None = None,
    right_topic: str | None = None,
    depth_topic: str | None = None,
    camera: Path | None = None,
    progress: bool = True,
) -> int:
    """Play a source to the node over DDS, print a report, and write `report.json`, `matches.png`, `trajectory.png`.

    The node and the publisher are separate processes with the logs `node.log` and `publisher.log`. The rendered scene
    is kept in the folder `rendered` for the next run. Without ROS_DOMAIN_ID in the environment, a domain that is free
    on this machine is used, and nothing leaves the machine.

    Args:
        source: see `loftr_ros.recordings.open_source`.
        output: folder to write to; it is created if necessary.
        weights: weights file, a name of `loftr_ros weights list`, or `random`; empty for the value in `params_file`, or
            else the first weights found.
        network, device, precision: parameters of the node; empty for the value in `params_file`, or else the default.
        params_file: parameters of the node.
        rate: playback speed; 2 is twice as fast as the stamps.
        hz: fixed frames a second instead of the stamps.
        frames: maximum number of frames.
        mode: mono, stereo or rgbd; empty for the value in `params_file`, or else mono. The source must have the images.
        archive: folder or address of an archive of keyframes, for loops; empty for the value in `params_file`, or none.
        start, step, topic, right_topic, depth_topic, camera: options of the source.
        progress: show progress bars.

    Returns:
        Exit code: 0 if frames were processed and nothing failed, 1 if something failed, 2 if an argument cannot be
        used, 130 after Ctrl-C. It does not depend on the poses: random weights, or a scene that cannot be matched,
        rightly give none, and the report says so.
    """
    options = {"start": start, "step": step, "topic": topic, "camera": camera}
    options |= {"right_topic": right_topic, "depth_topic": depth_topic}
    settings = Settings(
        source,
        output,
        network,
        weights,
        device,
        precision,
        params_file,
        rate,
        hz,
        frames,
        mode,
        archive,
        options,
        progress,
    )
    try:
        return _run(settings)
    except (ParamsFileError, SourceError, WeightsError, _UsageError) as error:
        print(f"loftr_ros demo: {error}", file=sys.stderr)
        return 2
    except (DemoError, DomainError) as error:
        print(f"loftr_ros demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("loftr_ros demo: stopped", file=sys.stderr)
        return 130


class _UsageError(Exception):
    """An argument makes no sense; the message says why."""


def _run(settings: Settings) -> int:
    from loftr_ros.tools.demo import report as reporting
    from loftr_ros.tools.demo.recorder import Recorder

    if settings.rate <= 0 or (settings.hz is not None and settings.hz <= 0):
        raise _UsageError(f"rate {settings.rate}, hz {settings.hz}: both must be more than 0")
    if settings.frames is not None and settings.frames < 2:
        raise _UsageError(f"frames {settings.frames}: at least 2 are needed for a pose")
    weights = _weights(settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    output = settings.output.resolve()
    for name in ("report.json", "matches.png", "trajectory.png"):
        (output / name).unlink(missing_ok=True)
    sequence = prepare(
        settings.source, output / "rendered", settings.frames, settings.options, settings.progress, settings.played_mode
    )
    with ExitStack() as stack:
        _interrupted_by(signal.SIGTERM, stack)
        domain = stack.enter_context(own_domain())
        environment, room = _environment(domain)
        if room.is_short:
            print(f"loftr_ros demo: {room.reason}", file=sys.stderr)
        command = _node_command(settings, sequence, weights, room.is_short)
        node = Child("node", command, output / "node.log", environment)
        stack.callback(node.close)
        publisher = Child("publisher", _publisher_command(settings, sequence), output / "publisher.log", environment)
        stack.callback(publisher.close)
        recorder = Recorder(domain)
        stack.callback(recorder.close)
        _activate(node, publisher, recorder)
        published = _follow(node, publisher, recorder, sequence, settings.progress)
        node.interrupt()  # the process ends while the report is written
        recorded = recorder.recorded
        truth = sequence.look_again(reporting.picture_stamps(recorded.picture))
        played_hz = settings.hz or settings.rate * sequence.rate
        found = reporting.summary(sequence, played_hz, published, recorded, truth)
        found["node"]["weights"] = Path(weights).name if weights else "as in the parameter file"
        without_plots = why_no_plots()
        trajectory = output / "trajectory.png"
        drawn = {
            "matches.png": reporting.draw_picture(output / "matches.png", recorded.picture, truth, sequence.name),
            "trajectory.png": not without_plots
            and reporting.draw_trajectory(trajectory, recorded, truth, sequence.name),
        }
        found["node"]["exit_code"] = node.close()
    (output / "report.json").write_text(json.dumps(reporting.without_nan(found), indent=2) + "\n")
    print("\n".join(reporting.lines(found)))
    if without_plots:
        print(f"note: trajectory.png is left out, since {without_plots}")
    names = [name for name, is_there in drawn.items() if is_there]
    print(f"\nwritten to {settings.output}: {', '.join([*names, 'report.json', 'node.log'])}")
    if found["node"]["exit_code"] != 0:
        raise DemoError(
            f"the node ended with exit code {found['node']['exit_code']} when asked to stop:\n{node.last_lines}"
        )
    if not found["frames"]["processed"]:
        raise DemoError(f"no frame was processed; the node's last output:\n{node.last_lines}")
    return 0


def _weights(settings: Settings) -> str:
    """The node's parameter: the weights file or `random`; empty if the parameter file has it.

    Raises:
        WeightsError: there is no such file.
    """
    named = settings.file_values
    if named.get("weights") and not settings.weights:
        return ""
    if settings.weights == RANDOM:
        return RANDOM
    given = Path(settings.weights).expanduser()
    if settings.weights and named.get("backend") in ("onnx", "openvino") and given.is_dir():
        return str(given.resolve())
    network = settings.network or str(named.get("network", AUTO))
    return str(find_weights(network, settings.weights).resolve())


def _environment(domain: int) -> tuple[dict[str, str], SharedMemory]:
    """Environment of the children. This process uses the same discovery range and profile."""
    # The demo's messages stay on this machine; without a network DDS has only the loopback.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    room = provide_profile()
    return os.environ | {"ROS_DOMAIN_ID": str(domain)}, room


def _node_command(settings: Settings, sequence: Sequence, weights: str, is_short: bool) -> list[str]:
    """Command of the installed executable, or else of Python, with the parameters.

    Reliable subscriptions: if the middleware's buffers are too small for images, lost data is sent again.
    """
    parameters: dict[str, Any] = {
        "mode": settings.mode,
        "network": settings.network,
        "device": settings.device,
        "precision": settings.precision,
        "weights": weights,
        "archive.uri": _absolute(settings.archive),
        "warm_up_width": sequence.size[0],
        "warm_up_height": sequence.size[1],
        "output.status_period": _STATUS_PERIOD,
        "output.status_window": _WINDOW,
    }
    if not sequence.calibrated:
        parameters["input.camera_info"] = "none"
    if is_short:
        topics = ["image", "camera_info"]
        topics += {STEREO: ["right/image", "right/camera_info"], RGBD: ["depth/image"]}.get(settings.played_mode, [])
        parameters |= {f"qos_overrides./{topic}.subscription.reliability": "reliable" for topic in topics}
    command = [sys.executable, "-c", "import sys; from loftr_ros.ros.node import main; sys.exit(main())"]
    try:
        from ament_index_python.packages import PackageNotFoundError, get_package_prefix

        executable = Path(get_package_prefix("loftr_ros"), "lib", "loftr_ros", "front_end")
        if executable.is_file():
            command = [str(executable)]
    except (ImportError, PackageNotFoundError):
        pass
    command.append("--ros-args")
    if settings.params_file is not None:
        command += ["--params-file", str(settings.params_file.resolve())]
    for name, value in parameters.items():
        if value != "":
            command += ["-p", f"{name}:={json.dumps(value)}"]  # quoted, because the device `0` would be a number
    return command


def _absolute(archive: str) -> str:
    """Absolute path of an archive's folder, because the node runs in another folder. Addresses stay."""
    return archive if not archive or "://" in archive else str(Path(archive).expanduser().resolve())


def _publisher_command(settings: Settings, sequence: Sequence) -> list[str]:
    asked = {
        "uri": sequence.uri,
        "source": dict(sequence.options),
        "play": {
            "mode": settings.played_mode or MONO,
            "image_transport": settings.file_values.get("input.image_transport", "raw"),
            "rate": settings.rate,
            "hz": settings.hz,
            # The publisher is ready long before the node.
            "wait_for_subscriber": _UP + _CONFIGURED + _ACTIVE,
        },
    }
    return [sys.executable, "-m", "loftr_ros.tools.demo.publisher", json.dumps(asked)]


def _activate(node: Child, publisher: Child, recorder: Any) -> None:
    """Activate the node by its lifecycle services, as a lifecycle manager does."""
    from loftr_ros.tools.demo.recorder import ACTIVATE, CONFIGURE

    children = (node, publisher)
    wait_until(lambda: recorder.node_is_up, _UP, "the node's lifecycle services", children)
    for transition, seconds, name in ((CONFIGURE, _CONFIGURED, "configured"), (ACTIVATE, _ACTIVE, "active")):
        if transition == ACTIVATE:
            wait_until(lambda: recorder.node_is_connected, _UP, "the node's topics", children)
        answer = recorder.request(transition)
        wait_until(answer.done, seconds, f"the node to become {name}", children)
        if not answer.result().success:
            raise DemoError(f"the node could not become {name}; its last output:\n{node.last_lines}")


def _follow(node: Child, publisher: Child, recorder: Any, sequence: Sequence, progress: bool) -> int:
    """Wait until every frame is accounted for; returns the number of published frames.

    Raises:
        DemoError: a process ended, or no message came for too long.
    """
    from tqdm import tqdm

    settled, statuses = 0, recorder.recorded.statuses
    frames_at = heard_at = time.monotonic()
    published: int | None = None
    with tqdm(None, sequence.name, sequence.length, unit="frame", disable=None if progress else True) as bar:
        while True:
            time.sleep(0.02)
            node.check()
            if publisher.exit_code is not None and published is None:
                published = _published(publisher)
                frames_at = time.monotonic()
            now, status = time.monotonic(), recorder.recorded.status
            if recorder.recorded.statuses != statuses:
                statuses, heard_at = recorder.recorded.statuses, now
                count = status.frames_processed + status.frames_dropped + status.frames_failed + status.frames_unpaired
                if count != settled:
                    bar.update(count - settled)
                    settled, frames_at = count, now
                if published is not None and settled >= published and not status.frames_pending:
                    break
            idle = status is None or not status.frames_pending
            # Missing frames were lost in transport; an image whose partner was lost is pending for some seconds.
            if published is not None and now - frames_at > (_LAST_FRAMES if idle else _SILENCE):
                break
            if now - heard_at > _SILENCE:
                raise DemoError(
                    f"no message came on ~/status for {_SILENCE:g} s; the node's last output:\n{node.last_lines}"
                )
            # A source may have pauses, but not forever.
            if now - frames_at > 2 * _SILENCE:
                raise DemoError(
                    f"no frame came for {2 * _SILENCE:g} s; the publisher's last output:\n{publisher.last_lines}"
                )
    # The last frame's results were sent before the status that counts it, but on other topics.
    time.sleep(_STATUS_PERIOD)
    return published


def _published(publisher: Child) -> int:
    """Number of frames that the publisher reports."""
    if publisher.exit_code == 0:
        for line in reversed(publisher.output.splitlines()):
            if line.startswith("{"):
                return int(json.loads(line)["published"])
    raise DemoError(f"the publisher ended with exit code {publisher.exit_code}:\n{publisher.last_lines}")


def _interrupted_by(number: int, stack: ExitStack) -> None:
    """Let SIGTERM end the demo as Ctrl-C does; has no effect outside the main thread."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(number, interrupt)
    except ValueError:
        return
    stack.callback(signal.signal, number, before)
