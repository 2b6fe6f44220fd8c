"""The version of the package that is installed."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path


def installed_version() -> str:
    """The version from pip's metadata, or from the package.xml that colcon installs; "unknown" without both."""
    try:
        return importlib.metadata.version("loftr_ros")
    except importlib.metadata.PackageNotFoundError:
        return _version_of_package_xml() or "unknown"


def _version_of_package_xml() -> str:
    try:
        from ament_index_python import get_package_share_directory

        text = (Path(get_package_share_directory("loftr_ros")) / "package.xml").read_text()
    except (ImportError, LookupError, OSError, ValueError):  # no ROS, or the package runs from its source tree
        return ""
    found = re.search(r"<version>\s*([^<\s]+)\s*</version>", text)
    return found[1] if found else ""


VERSION = installed_version()
