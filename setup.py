"""Builds loftr_ros for pip with the CMakeLists.txt that colcon builds it with: see cmake/build_backend.py."""

import os
import shutil
import sys
import xml.etree.ElementTree
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "cmake"))

import build_backend  # noqa: E402

# What the code imports, apart from ROS; package.xml says the same with rosdep's keys.
REQUIREMENTS = [
    "PyYAML>=5.4",
    "numpy>=1.26,<3",
    "opencv-python-headless>=4.6,<5",  # ROS distributions have OpenCV 4
    "rosbags>=0.11",
    "safetensors>=0.4",
    "torch>=2.2,<2.14",  # bounded: a newer one fetches gigabytes of CUDA, on machines without a GPU too
    "tqdm>=4.57",
    "typer>=0.9",
]
# What a robot can do without; loftr_ros/extras.py says what to install where one is missing.
EXTRAS = {
    "backend": ["gtsam>=4.3"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings-python>=1.12"],
    # The archive of keyframes, for loops: 350 MB.
    "archive": ["lancedb>=0.40,<1", "pyarrow>=16"],
    # COLMAP's triangulation and poses, and hloc's files: 150 MB. rosdep has keys of h5py and of COLMAP's programs, but
    # none of its Python module.
    "localisation": ["h5py>=3", "pycolmap>=3.13"],
    "onnx": ["onnx>=1.14", "onnxruntime>=1.17"],
    "openvino": ["openvino>=2024.0"],
    "parquet": ["pyarrow>=14"],
    # Pictures of trajectories and of loops, and `loftr_ros explain`: 95 MB.
    "plot": ["matplotlib>=3.5"],
    "recorded": ["h5py>=3"],
    # 2.6.2 and 2.6.3 were malicious releases (GHSA-w37p-236h-pfx3).
    "train": ["pytorch-lightning>=2.4,<2.7,!=2.6.2,!=2.6.3", "tensorboard>=2.12"],
    # 107 MB. Debian and Ubuntu have it as python3-av, but rosdep has no key for it (ros/rosdistro of late 2026).
    "video": ["av>=10"],
    "view": ["rerun-sdk>=0.23"],  # 0.23 is the newest that works with numpy 1.26
    "test": [
        "av>=10",
        "gtsam>=4.3",
        "h5py>=3",
        "hypothesis>=6.40",
        "import-linter>=2.7",
        "kornia>=0.7.3",
        "lancedb>=0.40,<1",
        "matplotlib>=3.5",
        "mypy>=1.10",
        "onnx>=1.14",
        "onnxruntime>=1.17",
        "openvino>=2024.0",
        "pyarrow>=16",
        "pycolmap>=3.13; platform_machine != 'aarch64'",  # PyPI has no wheel there
        "pytest>=8",
        "pytorch-lightning>=2.4,<2.7,!=2.6.2,!=2.6.3",
        "pytest-timeout>=2.2",
        "ruff>=0.6",
        "scipy>=1.8",
        "tensorboard>=2.12",
        "types-PyYAML",
        "types-tqdm",
    ],
}
# For a PC.
EXTRAS["all"] = [*EXTRAS["archive"], *EXTRAS["openvino"], *EXTRAS["plot"], *EXTRAS["video"]]


class BuildWithCMake(build_py):
    """Takes the package from CMake's staging folder; what is not Python there becomes data files of the prefix."""

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit("An editable install would lack the generated messages. Use `make install`: it is quick.")
        staged = build_backend.stage(Path(self.get_finalized_command("build").build_base))
        # What vanished from the tree must not live on in the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        data: dict[str, list[str]] = {}
        for scheme, source, relative in build_backend.staged_files(staged):
            if scheme == "data":
                data.setdefault(str(relative.parent), []).append(os.path.relpath(source, ROOT))
            else:
                target = Path(self.build_lib, relative)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        Path(self.build_lib, build_backend.AMENT_PREFIX_FILE).write_text(build_backend.AMENT_PREFIX_PTH)
        self.distribution.data_files = list(data.items())


class BinaryDistribution(Distribution):
    """The generated messages are compiled: the wheel is one for this platform and this Python."""

    def has_ext_modules(self) -> bool:
        return True


manifest = xml.etree.ElementTree.parse(ROOT / "package.xml").getroot()
readme = ROOT / "README.md"
distro = build_backend.wheels_distro()

setup(
    name=build_backend.PACKAGE,
    version=manifest.findtext("version"),
    description=manifest.findtext("description"),
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else None,
    long_description_content_type="text/markdown",
    license=manifest.findtext("license"),
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["loftr_ros", "loftr_ros.*"]),
    install_requires=[*REQUIREMENTS, *(build_backend.RUN_WHEELS[distro] if distro else [])],
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithCMake},
    distclass=BinaryDistribution,
)
