"""Asks pip's index which wheels of the dependencies exist for aarch64, by JetPack: what docs/jetson.md lists.

    python3 docs/tools/aarch64_wheels.py [--index-url URL] [--packages torch onnxruntime-gpu ...]

Another index, such as one of wheels for Jetsons, is asked with --index-url. Nothing is installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass

PACKAGES = [
    "torch",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "opencv-python-headless",
    "safetensors",
    "av",
    "gtsam",
]
PACKAGES += ["lancedb"]


@dataclass(frozen=True)
class JetPack:
    """A release: its Python, and the newest glibc that its wheels may need."""

    name: str
    python: str
    glibc: int


JETPACKS = (JetPack("JetPack 6 (Ubuntu 22.04)", "3.10", 35), JetPack("JetPack 7 (Ubuntu 24.04)", "3.12", 39))


def newest_wheel(package: str, jetpack: JetPack, index_url: str) -> str:
    """Name of the newest wheel; empty if there is none."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", jetpack.python, "--target", "unused", "--report", "-"]
    command += [
        "--implementation",
        "cp",
        "--abi",
        f"cp{jetpack.python.replace('.', '')}",
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    for platform in ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, jetpack.glibc + 1)), "linux"):
        command += ["--platform", f"{platform}_aarch64"]
    command += ["--platform", "any"]
    if index_url:
        command += ["--index-url", index_url]
    done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
    if done.returncode:
        return ""
    found = json.loads(done.stdout)["install"]
    return str(found[0]["download_info"]["url"].rsplit("/", 1)[-1]) if found else ""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index-url", default="", help="instead of pip's own")
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    options = parser.parse_args()
    print(f"| package | {' | '.join(each.name for each in JETPACKS)} |")
    print(f"| --- |{' --- |' * len(JETPACKS)}")
    for package in options.packages:
        wheels = [newest_wheel(package, each, options.index_url) for each in JETPACKS]
        print(f"| `{package}` | {' | '.join(f'`{each}`' if each else 'none' for each in wheels)} |", flush=True)


if __name__ == "__main__":
    main()
