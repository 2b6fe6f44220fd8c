"""Shared memory for images in the middleware: a profile for Fast DDS, unless the user has one.

Fast DDS passes messages between processes in shared memory. Each process has half a megabyte for all its publishers, so
if two images are published at once, one is lost. The profile makes it 16 MB.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Bytes, as in config/fastdds.xml.
SEGMENT = 16 * 2**20
# Fast DDS 2 (Humble, Jazzy) and 3 (Kilted and later) use different names.
VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
DEFAULT_FILES = ("DEFAULT_FASTRTPS_PROFILES.xml", "DEFAULT_FASTDDS_PROFILES.xml")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class SharedMemory:
    """Result of the configuration of shared memory.

    Attributes:
        profile: the file given to Fast DDS; None if none was given.
        reason: in words, for the log.
        is_short: shared memory is too small for the profile, so images may be lost.
    """

    profile: Path | None
    reason: str
    is_short: bool = False

    def log(self, logger: Any) -> None:
        """Log the reason; as a warning if images may be lost."""
        # Separate calls: rclpy requires one severity per logging call site.
        if self.is_short:
            logger.warning(self.reason)
        else:
            logger.debug(self.reason)


def provide_profile(
    environment: MutableMapping[str, str] | None = None, shared_memory: Path = SHARED_MEMORY
) -> SharedMemory:
    """Give Fast DDS our profile, unless the user has one or another middleware. Call it before `rclpy.init`.

    Fast DDS reads the profile once in a process, with the first node. Child processes inherit it.

    Args:
        environment: to change; None for this process's.
        shared_memory: file system that shared memory is on.
    """
    environment = os.environ if environment is None else environment
    if own := _of_the_user(environment):
        return SharedMemory(None, own)
    local = environment.get("ROS_LOCALHOST_ONLY") == "1" or (
        environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "").upper() == "LOCALHOST"
    )
    profile = _config_folder() / ("fastdds_localhost.xml" if local else "fastdds.xml")
    if not profile.is_file():
        return SharedMemory(
            None, f"Fast DDS uses only half a megabyte for images: {profile} is not installed", is_short=True
        )
    # Half of it is left to the process at the other end. If Fast DDS cannot get a segment it uses UDP, which loses more
    # than its own small segments do.
    if shared_memory.is_dir() and (free := shutil.disk_usage(shared_memory).free) < 2 * SEGMENT:
        return SharedMemory(
            None,
            f"{shared_memory} has {free / 2**20:.0f} MB left, too little for Fast DDS to share images; some may be "
            "lost. Provide 256 MB (a container: --shm-size=256m, or --ipc=host)",
            is_short=True,
        )
    for variable in VARIABLES:
        environment[variable] = str(profile)
    return SharedMemory(profile, f"Fast DDS shares images in {SEGMENT // 2**20} MB per process, by {profile}")


def _of_the_user(environment: MutableMapping[str, str]) -> str:
    """The user's own configuration of the transport, in words; empty if there is none."""
    middleware = environment.get("RMW_IMPLEMENTATION", "")
    if middleware and not middleware.startswith("rmw_fastrtps"):
        return f"the middleware is {middleware}, which needs its own configuration for images: see docs/transport.md"
    for variable in (*VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS"):
        if environment.get(variable):
            return f"Fast DDS has the user's {variable}={environment[variable]}"
    if "1" not in (environment.get("SKIP_DEFAULT_XML", "")[:1], environment.get("SKIP_DEFAULT_XML_FILE", "")[:1]):
        for name in DEFAULT_FILES:
            if Path(name).is_file():
                return f"Fast DDS has the user's {Path(name).resolve()}"
    return ""


def _config_folder() -> Path:
    """Folder of the installed configuration files."""
    try:
        from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

        return Path(get_package_share_directory("loftr_ros"), "config")
    except (ImportError, PackageNotFoundError):
        return Path(__file__).resolve().parents[2] / "config"  # in a source tree
