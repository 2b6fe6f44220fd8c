"""Angular velocities and accelerations of a recording beside its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.frontend.gyroscope import Gyroscope
from loftr_ros.geometry.se3 import inverse
from loftr_ros.recordings.images import SourceError
from loftr_ros.recordings.pairing import body_camera
from loftr_ros.recordings.stamps import NANOSECONDS, to_nanoseconds
from loftr_ros.recordings.tables import numbers_in, read_table

# Nanoseconds by which samples are read ahead of a frame, for the end of its interval.
_AHEAD = 20_000_000


@dataclass(frozen=True, eq=False)
class RecordedImu:
    """Samples of an inertial sensor in order of time.

    Attributes:
        stamps: (N,) int64 ns, by the clock of the images.
        rates: (N, 3) rad/s about the sensor's axes.
        accelerations: (N, 3) m/s^2 along them, at rest upward; None without an accelerometer.
        camera_from_imu: (4, 4) T_camera_imu, metres.
    """

    stamps: NDArray[np.int64]
    rates: NDArray[np.float64]
    accelerations: NDArray[np.float64] | None
    camera_from_imu: NDArray[np.float64]

    def until(self, stamp_ns: int, start: int, gyroscope: Gyroscope, samples: ImuSamples | None = None) -> int:
        """Add the samples up to a frame, and a little beyond.

        Args:
            stamp_ns: of the frame.
            start: number of the first sample to add.
            gyroscope: receives the angular velocities.
            samples: receives them too, with the accelerations.

        Returns:
            Number of the next sample to add.
        """
        end = int(np.searchsorted(self.stamps, stamp_ns + _AHEAD, side="right"))
        for sample in range(start, end):
            gyroscope.add(int(self.stamps[sample]), self.rates[sample])
            if samples is not None and self.accelerations is not None:
                samples.add(int(self.stamps[sample]), self.rates[sample], self.accelerations[sample])
        return max(start, end)


def euroc_imu(camera_folder: Path, camera: dict[str, object], imu: dict[str, object]) -> RecordedImu:
    """The samples of `imu0` beside a EuRoC camera's folder. Accelerations may be missing in its table, or not finite.

    Args:
        camera_folder: `cam0` or `cam1`.
        camera: its `sensor.yaml`.
        imu: `imu0/sensor.yaml`.

    Raises:
        SourceError: the table or an extrinsic cannot be read.
    """
    folder = camera_folder.resolve().parent / "imu0"
    table = folder / "data.csv"
    rows = read_table(table, 4)
    stamps = to_nanoseconds([row[0] for row in rows], str(table), NANOSECONDS, [row.line for row in rows])
    rates = numbers_in(rows, 4, table)[:, 1:4]
    accelerations = None
    if rows and all(len(row) >= 7 for row in rows):
        accelerations = numbers_in(rows, 7, table)[:, 4:7]
        accelerations = accelerations if np.isfinite(accelerations).all() else None
    if not len(rows) or not np.isfinite(rates).all():
        raise SourceError(f"{table} has no angular velocities, or some that are not finite")
    in_body, imu_in_body = body_camera(camera, camera_folder), body_camera(imu, folder)
    return RecordedImu(np.asarray(stamps, np.int64), rates, accelerations, inverse(in_body) @ imu_in_body)
