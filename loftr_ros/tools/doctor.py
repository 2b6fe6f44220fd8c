"""`loftr_ros doctor`: tries out what the node would use on this machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
import warnings
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OK, NOTE, FAILS = "ok", "note", "FAILS"

# Distribution, module, and its extra; distributions with an extra are optional.
_PACKAGES = (
    ("numpy", "numpy", ""),
    ("opencv", "cv2", ""),
    ("torch", "torch", ""),
    ("rosbags", "rosbags", ""),
    ("PyAV", "av", "video"),
    ("lancedb", "lancedb", "archive"),
    ("gtsam", "gtsam", "backend"),
    ("matplotlib", "matplotlib", "plot"),
    ("pycolmap", "pycolmap", "localisation"),
    ("openvino", "openvino", "openvino"),
    ("onnxruntime", "onnxruntime", "onnx"),
    ("rerun-sdk", "rerun", "view"),
)
# Fast DDS's default size of a publisher's shared memory segment.
_FAST_DDS_SEGMENT = 512 << 10
_PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_LEAST_MATCHES = 50  # of an image with itself


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        verdict: OK, NOTE (works, but worth knowing), or FAILS.
        name: what was looked at.
        text: the finding, and what to do if something is wrong.
    """

    verdict: str
    name: str
    text: str


def examine(values: Mapping[str, Any], device: str = "", precision: str = "") -> Iterator[Finding]:
    """Check everything in turn; a failure becomes a finding and is never raised.

    Args:
        values: the node's parameters by their full names.
        device, precision: replace the parameters' values; empty to keep them.
    """
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _machine,
        _packages,
        lambda: _cuda(),
        lambda: _network(values, device, precision),
        _ros,
        _dds,
    )
    for look in looks:
        try:
            yield from look()
        except Exception as error:  # a broken installation can fail in any way
            name = getattr(look, "__name__", "").strip("_") or "examination"
            yield Finding(FAILS, name, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _machine() -> Iterator[Finding]:
    from loftr_ros.matcher.precision import cpu_has_bf16

    try:
        own = importlib.metadata.version("loftr_ros")
    except importlib.metadata.PackageNotFoundError:
        own = "of unknown version (installed without metadata)"
    yield Finding(OK, "loftr_ros", f"{own}, in {Path(__file__).parents[1]}")
    verdict = OK if sys.version_info >= (3, 10) else FAILS
    yield Finding(verdict, "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    half = "bfloat16 in hardware" if cpu_has_bf16() else "no bfloat16 in hardware, so float32"
    yield Finding(OK if usable >= 2 else NOTE, "CPU", f"{usable} of {os.cpu_count()} cores may be used, {half}")
    if (memory := _available_memory()) is not None:
        enough = memory >= 1 << 30
        text = f"{memory / 2**30:.1f} GB available; the node takes 0.6 GB and more"
        yield Finding(OK if enough else NOTE, "memory", text)


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def _packages() -> Iterator[Finding]:
    # LanceDB warns in the processes that other packages fork, which do not use it.
    warnings.filterwarnings("ignore", message="lancedb fork support")
    for name, module, extra in _PACKAGES:
        try:
            imported = importlib.import_module(module)
        except ImportError as error:
            if extra:
                yield Finding(NOTE, name, f"not installed; only the extra `{extra}` needs it")
            else:
                yield Finding(FAILS, name, f"cannot be imported ({error}); install it")
            continue
        version = getattr(imported, "__version__", None) or _version(name)
        yield Finding(OK, name, str(version))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "there, of unknown version"


def _cuda() -> Iterator[Finding]:
    """Run a kernel: a visible device may still be unable to run one."""
    import torch

    if not torch.cuda.is_available():
        why = "torch was built without it" if torch.version.cuda is None else "no device or driver"
        yield Finding(NOTE, "CUDA", f"none ({why}); the network runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        what = f"{about.name}, {about.total_memory / 2**30:.0f} GB, compute capability {about.major}.{about.minor}"
        try:
            image = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)
            weight = torch.full((8, 1, 3, 3), 1 / 9)
            expected = torch.nn.functional.conv2d(image, weight)
            for dtype in (torch.float32, torch.float16):
                place = torch.device("cuda", index)
                found = torch.nn.functional.conv2d(image.to(place, dtype), weight.to(place, dtype))
                torch.cuda.synchronize(place)
                if not torch.allclose(found.float().cpu(), expected, atol=5e-3):
                    raise RuntimeError(f"a convolution in {dtype} gave a wrong result")
        except Exception as error:
            first = str(error).partition("\n")[0]
            yield Finding(FAILS, f"CUDA {index}", f"{what}: no kernel runs ({first}); set device to cpu, or repair it")
        else:
            yield Finding(OK, f"CUDA {index}", f"{what}; a convolution gave the right result in float32 and float16")


def _network(values: Mapping[str, Any], device: str, precision: str) -> Iterator[Finding]:
    """Build the network of the parameters, and match an image with itself."""
    from loftr_ros.frontend.frame import Frame
    from loftr_ros.matcher.factory import backend_of, precision_of
    from loftr_ros.tools.opening import open_offline

    try:
        front_end, _ = open_offline(dict(values), device, precision, None)
    except Exception as error:
        yield Finding(FAILS, "network", str(error).partition("\n")[0])
        return
    matcher = front_end.matcher
    weights = values.get("weights") or "the first found"
    yield Finding(
        OK,
        "network",
        f"{matcher.config.name} on {matcher.device} in {precision_of(matcher)}, backend {backend_of(matcher)}, "
        f"weights {weights}",
    )
    if weights == "random":
        yield Finding(NOTE, "weights", "random: they match nothing, so matching was not tested")
        return
    width, height = matcher.fixed_size or (640, 480)
    rng = np.random.default_rng(0)
    import cv2

    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(0, 50, (height, width))
    image = np.clip(0.8 * np.asarray(texture) + noise, 0, 255).astype(np.uint8)
    front_end.pairs.match_pair(Frame(image, 1, "camera"), Frame(image, 2, "camera"))  # the first run takes longer
    start = time.perf_counter()
    found = front_end.pairs.match_pair(Frame(image, 1, "camera"), Frame(image, 2, "camera"))
    took = 1e3 * (time.perf_counter() - start)
    off = np.linalg.norm(found.current_points - found.keyframe_points, axis=1)
    text = f"{len(found)} matches of an image of {width}x{height} with itself in {took:.0f} ms (both encoded)"
    if len(found) < _LEAST_MATCHES or np.median(off) > 1.0:
        middle = f", {np.median(off):.1f} px off" if len(found) else ""
        yield Finding(
            FAILS, "matching", f"{text}{middle}: expected many more with an offset near 0; are these weights trained?"
        )
    else:
        yield Finding(OK, "matching", f"{text}, {np.median(off):.2f} px off (median)")


def _ros_distribution() -> str:
    """Name of the sourced ROS 2, or of PyPI's wheels; empty if neither tells."""
    if sourced := os.environ.get("ROS_DISTRO", ""):
        return sourced
    names = (re.fullmatch(r"ros-(\w+)-rclpy", each.name or "") for each in importlib.metadata.distributions())
    return next((f"{name[1]}, from PyPI's wheels" for name in names if name), "")


def _ros() -> Iterator[Finding]:
    distribution = _ros_distribution()
    try:
        importlib.import_module("rclpy")
    except ImportError as error:
        yield Finding(
            NOTE, "ROS 2", f"rclpy cannot be imported ({error}); the node needs it, commands for recordings do not"
        )
        return
    yield Finding(
        OK if distribution else NOTE, "ROS 2", distribution or "rclpy is installed, but ROS_DISTRO is not set"
    )
    try:
        from rclpy.serialization import deserialize_message, serialize_message

        kind = importlib.import_module("loftr_ros.msg").FrontEndStatus
        deserialize_message(serialize_message(kind()), kind)
    except Exception as error:
        yield Finding(FAILS, "messages", f"the messages of loftr_ros cannot be used ({error}); build the package again")
    else:
        yield Finding(OK, "messages", "the messages of loftr_ros are installed and can be serialised")


def _dds() -> Iterator[Finding]:
    try:
        implementation = importlib.import_module("rclpy").get_rmw_implementation_identifier()
    except Exception:
        return
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    yield Finding(OK, "DDS", f"{implementation}, domain {domain}, discovery {reach}")
    if "fastrtps" in implementation:
        size, where = segment_size()
        images = f"room for {size // (640 * 480)} gray image(s) of 640x480 at once"
        enough = size >= 4 * 640 * 480
        hint = "" if enough else "; larger images and pairs go by UDP or are lost: raise <segment_size> in a profile"
        yield Finding(OK if enough else NOTE, "shared memory", f"segments of {size >> 10} KB {where}, {images}{hint}")
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return
    text = f"{free / 2**20:.0f} MB free in /dev/shm"
    yield Finding(OK if free > 64 << 20 else NOTE, "/dev/shm", text)
    try:
        most = int(Path("/proc/sys/net/core/rmem_max").read_text())
    except (OSError, ValueError):
        return
    enough = most >= 2 << 20
    hint = "" if enough else "; images over a network need more: sysctl -w net.core.rmem_max=2147483647"
    yield Finding(OK if enough else NOTE, "UDP buffer", f"net.core.rmem_max is {most >> 10} KB{hint}")


def segment_size(environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Bytes of Fast DDS's shared memory segments, and where the number comes from."""
    environment = os.environ if environment is None else environment
    for name in _PROFILES:
        if not environment.get(name):
            continue
        path = Path(environment[name])
        try:
            root = xml.etree.ElementTree.parse(path).getroot()
        except (OSError, xml.etree.ElementTree.ParseError) as error:
            return _FAST_DDS_SEGMENT, f"(default: {path}, which {name} names, cannot be read: {error})"
        sizes = [each.text for each in root.iter() if each.tag.rpartition("}")[2] == "segment_size"]
        numbers = [int(text) for text in sizes if text and text.strip().isdecimal()]
        if numbers:
            return max(numbers), f"(by {path})"
    return _FAST_DDS_SEGMENT, "(Fast DDS's default)"


def lines(findings: list[Finding]) -> list[str]:
    """One line of text for each finding."""
    width = max((len(each.name) for each in findings), default=0)
    return [f"{each.verdict:5}  {each.name.ljust(width)}  {each.text}" for each in findings]
