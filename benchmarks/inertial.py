"""Metres and gravity for a single camera by an inertial sensor: how right they are, and how right they are said to be.

Four parts, all by default:

    drone: a real drone's inertial sensor with true poses (EuRoC). The true poses, in another unit and with noise, stand
        for the visual odometry, a keyframe every half second. Windows of 5, 10 and 20 s.
    clock: the same sensor with other stamps: by how much its clock differs from the poses'.
    motions: made motions with a made sensor: those that tell metres, those that do not, and a sensor that is mounted
        otherwise than stated. None of the latter two may be believed.
    walk: a rendered walk as a EuRoC recording with `imu0`, through the front end with one camera and the back end.

    .venv/bin/python benchmarks/inertial.py [drone clock motions walk] [--data ../shared/data] [--out FILE]
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from measuring import Report
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.imu_clock import clock_offset
from loftr_ros.backend.imu_samples import ImuSamples
from loftr_ros.backend.inertial import InertialSolution, solve_inertial
from loftr_ros.backend.measurements import Length, PoseMeasurement
from loftr_ros.geometry.se3 import between, from_quaternion, inverse, rotation_matrix
from loftr_ros.worlds.inertial import InertialSensor, inertial_readings
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

Array = NDArray[np.float64]
Motion = Callable[[float], Array]

# Seconds between keyframes, metres in the odometry's unit, and its noise: part of the length, metres, radians.
STEP, UNIT = 0.5, 2.0
LENGTH_NOISE, PLACE_NOISE, TURN_NOISE = 0.01, 0.002, np.radians(0.1)
MOUNT = np.eye(4)
MOUNT[:3, :3], MOUNT[:3, 3] = rotation_matrix([0.3, -1.2, 0.8]), (0.05, -0.02, 0.03)
CONFIG = BackEndConfig()


def links_of(poses: list[Array], random: np.random.Generator) -> list[tuple[int, PoseMeasurement]]:
    """What a single camera would measure between keyframes."""
    found = []
    for k, (one, other) in enumerate(itertools.pairwise(poses)):
        pose = between(one, other)
        std = (LENGTH_NOISE * np.linalg.norm(pose[:3, 3]) + PLACE_NOISE) / UNIT
        pose[:3, 3] = pose[:3, 3] / UNIT + std * random.normal(size=3)
        pose[:3, :3] = rotation_matrix(TURN_NOISE * random.normal(size=3)) @ pose[:3, :3]
        covariance = np.diag(np.repeat([std**2, TURN_NOISE**2], 3))
        found.append((k, PoseMeasurement(pose, covariance, Length.OWN_UNIT)))
    return found


def is_believed(found: InertialSolution | None) -> bool:
    """As in the back end."""
    if found is None or found.misfit > CONFIG.inertial.max_misfit:
        return False
    return found.measurement()[1].std <= CONFIG.inertial.max_scale_std


def errors(found: InertialSolution, down: Array) -> tuple[float, float, float, float]:
    """Error of the unit and its stated standard deviation, in percent; the same of gravity, in degrees.

    Args:
        found: what was found.
        down: (3,) true direction of gravity in the first camera.
    """
    _, unit = found.measurement()
    off = np.degrees(np.arccos(np.clip(down @ found.down, -1, 1)))
    return 100 * (unit.metres / UNIT - 1), 100 * unit.std, float(off), float(np.degrees(found.down_std))


def flight(data: Path) -> tuple[NDArray[np.int64], list[Array], ImuSamples]:
    """Stamps and (4, 4) T_world_camera of the real drone's flight, and its sensor's samples."""
    folder = data / "imu_with_truth"
    truth, imu = (np.genfromtxt(folder / name, delimiter=",", skip_header=1) for name in ("truth.csv", "imu.csv"))
    times, stamps = (
        np.genfromtxt(folder / name, delimiter=",", skip_header=1, dtype=np.int64, usecols=0)
        for name in ("truth.csv", "imu.csv")
    )
    cameras = [from_quaternion(row[1:4], (*row[5:8], row[4])) @ inverse(MOUNT) for row in truth]
    samples = ImuSamples(MOUNT)
    for stamp, row in zip(stamps, imu, strict=True):
        samples.add(int(stamp), row[1:4], row[4:7])
    return times, cameras, samples


def clock(report: Report, data: Path) -> None:
    """The table of the clocks' offset: the real drone's sensor with other stamps."""
    times, cameras, samples = flight(data)
    newest = samples.newest_ns
    assert newest is not None
    last = (min(newest, times[-1]) - times[0]) / 1e9
    report("A drone's sensor whose stamps are moved, keyframes every 0.5 s, five seeds of noise; offsets in ms")
    report("keyframes  moved by  number  known  error: RMS, largest, stated")
    for count in (15, 20, 40):
        for moved in (0.0, 0.05, -0.15):
            other = ImuSamples(MOUNT)
            for stamp, sample in zip(samples._stamps, samples._samples, strict=True):
                other.add(stamp + round(1e9 * moved), sample[:3], sample[3:])
            rows = []
            for start in np.arange(1.0, last - count * STEP - 1, 5.0):
                wanted = times[0] + (1e9 * (start + STEP * np.arange(count))).astype(np.int64)
                numbers = np.searchsorted(times, wanted)
                for seed in range(5):
                    turned = [np.eye(3)]
                    for _, link in links_of([cameras[k] for k in numbers], np.random.default_rng(seed)):
                        turned.append(turned[-1] @ link.pose[:3, :3])
                    found = clock_offset(turned, [int(times[k]) for k in numbers], other)
                    assert found is not None
                    rows.append((1e3 * (found.seconds - moved), 1e3 * found.std, float(found.is_known)))
            table = np.array(rows)
            sure = table[table[:, 2] > 0]
            error = sure[:, 0] if len(sure) else np.full(1, np.nan)
            report(
                f"{count:9d} {1e3 * moved:9.0f} {len(table):7d} {len(sure):6d}   {np.sqrt(np.mean(error**2)):6.1f} "
                f"{np.abs(error).max():6.1f} {sure[:, 1].mean() if len(sure) else np.nan:6.1f}"
            )


def drone(report: Report, data: Path) -> None:
    """The table of the real drone."""
    times, cameras, samples = flight(data)
    newest = samples.newest_ns
    assert newest is not None
    report("A drone's sensor, keyframes every 0.5 s, five seeds of noise; unit in %, gravity in degrees")
    report("window        number  unit: RMS, largest, stated  gravity: RMS, largest, stated  misfit")
    last = (min(newest, times[-1]) - times[0]) / 1e9
    for length in (5.0, 10.0, 20.0):
        rows, misfit = [], []
        for start in np.arange(0, last - length, 2.5):
            wanted = np.arange(start, start + length + 1e-6, STEP)
            numbers = np.searchsorted(times, times[0] + (1e9 * wanted).astype(np.int64))
            stretches = samples.between([int(times[k]) for k in numbers])
            assert stretches is not None
            poses = [cameras[k] for k in numbers]
            for seed in range(5):
                links = links_of(poses, np.random.default_rng(seed))
                found = solve_inertial(links, stretches, MOUNT, CONFIG.inertial, CONFIG.noise)
                assert found is not None
                rows.append((*errors(found, poses[0][:3, :3].T @ [0, 0, -1]), float(is_believed(found))))
                misfit.append(found.misfit)
        table = np.array(rows)
        sure = table[table[:, 4] > 0]
        for label, some in (("all", table), ("believed", sure)):
            if len(some):
                rms, most, mean = np.sqrt((some**2).mean(axis=0)), np.abs(some).max(axis=0), some.mean(axis=0)
                report(
                    f"{length:4.0f} s {label:>8s} {len(some):4d}   {rms[0]:6.2f} {most[0]:6.2f} {mean[1]:6.2f}      "
                    f"{rms[2]:6.2f} {most[2]:6.2f} {mean[3]:6.2f}   {np.mean(misfit):5.2f}"
                )


def pose_at(position: Callable[[float], object], turn: Callable[[float], object]) -> Motion:
    """A motion from a position and a rotation vector at each time."""

    def motion(seconds: float) -> Array:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation_matrix(np.asarray(turn(seconds), np.float64)), position(seconds)
        return pose

    return motion


def _nothing(seconds: float) -> object:
    return (0.0, 0.0, 0.0)


def _wobble(t: float) -> object:
    return (0.1 * np.sin(1.1 * t), 0.1 * np.sin(1.7 * t + 1), 0.1 * np.sin(0.9 * t + 2))


def _look_round(t: float) -> object:
    return (0.1 * np.sin(0.8 * t), 0.8 * np.sin(0.5 * t), 0.1 * np.sin(1.3 * t))


def _hand(t: float) -> object:
    return (0.5 * np.sin(1.2 * t), 0.4 * np.sin(0.9 * t + 1), 0.2 * np.sin(1.5 * t))


MOTIONS: dict[str, Motion] = {
    "standing": pose_at(_nothing, _nothing),
    "turning on the spot": pose_at(_nothing, _look_round),
    "1 m/s straight on": pose_at(lambda t: (t, 0, 0), _nothing),
    "1 m/s, wobbling": pose_at(lambda t: (t, 0, 0), _wobble),
    "speeding up evenly": pose_at(lambda t: (0.25 * t * t, 0, 0), _wobble),
    "walking with steps": pose_at(lambda t: (t, 0.1 * np.sin(2 * t), 0.03 * np.sin(11 * t)), _wobble),
    "in a hand": pose_at(_hand, _look_round),
}


def motions(report: Report) -> None:
    """The table of made motions; windows of 5 and 15 s."""
    report("")
    report("Made motions, twenty seeds of noise and biases; believed: those within the limits of the parameters")
    report("motion                     window  believed  unit of these off by: RMS, largest, %   stated, % (median)")
    turned = MOUNT.copy()
    turned[:3, :3] = rotation_matrix([0, 0, np.pi / 2]) @ MOUNT[:3, :3]
    cases = [(name, motion, MOUNT) for name, motion in MOTIONS.items()]
    cases.append(("in a hand, axes swapped", MOTIONS["in a hand"], turned))
    for name, motion, mount in cases:
        for length in (5.0, 15.0):
            off, std = [], []
            for seed in range(20):
                measured = inertial_readings(motion, 0.0, length + 1.1, MOUNT, InertialSensor(), seed)
                samples = ImuSamples(mount)
                for at, rate, acceleration in zip(
                    measured.seconds, measured.rates, measured.accelerations, strict=True
                ):
                    samples.add(round(at * 1e9), rate, acceleration)
                times = np.arange(0.5, length + 0.5 + 1e-6, STEP)
                stretches = samples.between([round(at * 1e9) for at in times])
                assert stretches is not None
                links = links_of([motion(at) for at in times], np.random.default_rng(seed))
                found = solve_inertial(links, stretches, mount, CONFIG.inertial, CONFIG.noise)
                std.append(np.inf if found is None else 100 * found.measurement()[1].std)
                if found is not None and is_believed(found):
                    off.append(100 * (found.measurement()[1].metres / UNIT - 1))
            shown = "-" if not off else f"{np.sqrt(np.mean(np.square(off))):.1f}, {np.abs(off).max():.1f}"
            report(f"{name:26s} {length:4.0f} s {len(off):6d} of 20 {shown:>28s} {np.median(std):22.1f}")


def spline(seconds: float, seed: int) -> Motion:
    """The hand-held walk of a rendered room as a smooth motion."""
    rate = 120.0  # that of the walk's own grid
    poses = trajectory(int(seconds * rate), rate, seed)
    times = np.arange(len(poses)) / rate
    place = CubicSpline(times, poses[:, :3, 3])
    turn = RotationSpline(times, Rotation.from_matrix(poses[:, :3, :3]))

    def motion(at: float) -> Array:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn(at).as_matrix(), place(at)
        return pose

    return motion


def write_euroc(folder: Path, seed: int, seconds: float, rate: float, size: tuple[int, int]) -> None:
    """A rendered walk with an inertial sensor, in EuRoC's layout."""
    camera, scene, motion = default_camera(*size), Scene(seed), spline(seconds + 1, seed)
    body = folder / "mav0"
    for name in ("cam0/data", "imu0", "state_groundtruth_estimate0"):
        (body / name).mkdir(parents=True, exist_ok=True)
    pose = ", ".join(f"{value:.9f}" for value in inverse(MOUNT).ravel())
    (body / "cam0" / "sensor.yaml").write_text(
        f"T_BS:\n  cols: 4\n  rows: 4\n  data: [{pose}]\nrate_hz: {rate}\nresolution: [{size[0]}, {size[1]}]\n"
        f"camera_model: pinhole\nintrinsics: [{camera.matrix[0, 0]}, {camera.matrix[1, 1]}, {camera.matrix[0, 2]}, "
        f"{camera.matrix[1, 2]}]\ndistortion_model: radial-tangential\ndistortion_coefficients: [0, 0, 0, 0]\n"
    )
    body_pose = ", ".join(str(value) for value in np.eye(4).ravel())
    (body / "imu0" / "sensor.yaml").write_text(f"T_BS:\n  cols: 4\n  rows: 4\n  data: [{body_pose}]\nrate_hz: 200\n")
    measured = inertial_readings(motion, 0.1, seconds + 0.9, MOUNT, InertialSensor(), seed)
    rows = [
        ",".join([str(10**9 + round(at * 1e9)), *(f"{value:.9f}" for value in (*turned, *pushed))])
        for at, turned, pushed in zip(measured.seconds, measured.rates, measured.accelerations, strict=True)
    ]
    (body / "imu0" / "data.csv").write_text("#timestamp [ns],w,w,w,a,a,a\n" + "\n".join(rows) + "\n")
    images, truth = [], []
    for number in range(int(seconds * rate)):
        at = 0.2 + number / rate
        stamp = 10**9 + round(at * 1e9)
        file = body / "cam0" / "data" / f"{stamp}.png"
        if not file.is_file():
            cv2.imwrite(str(file), scene.render(camera, motion(at)).image)
        images.append(f"{stamp},{stamp}.png")
        imu = motion(at) @ MOUNT
        x, y, z, w = Rotation.from_matrix(imu[:3, :3]).as_quat()
        truth.append(",".join([str(stamp), *(f"{value:.9f}" for value in (*imu[:3, 3], w, x, y, z))]))
    (body / "cam0" / "data.csv").write_text("#timestamp [ns],filename\n" + "\n".join(images) + "\n")
    header = "#timestamp,p,p,p,q,q,q,q\n"
    (body / "state_groundtruth_estimate0" / "data.csv").write_text(header + "\n".join(truth) + "\n")


def walk(report: Report, keep: Path | None, seeds: list[int], seconds: float) -> None:
    """The front end and the back end over rendered walks."""
    from loftr_ros.evaluation.trajectory_errors import trajectory_errors
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.recordings import open_source
    from loftr_ros.tools.opening import open_offline
    from loftr_ros.tools.run import run

    report("")
    report(f"Rendered walks of {seconds:.0f} s at 15 Hz, 640x480, one camera: `loftr_ros run --optimise`")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (keep or Path(temporary)) / f"walk_{seed}"
            write_euroc(folder, seed, seconds, 15.0, (640, 480))
            opened, reader = open_offline({"mode": "mono"}, "", "", None)
            with open_source(folder) as source:
                done = run(source, FrontEnd(opened.matcher, opened.config), Path(temporary) / "out", reader=reader,
                           progress=False, optimise=True)  # fmt: skip
        assert done.optimised is not None
        found, is_metric, parts = done.optimised
        stamps = [stamp for stamp in found if stamp in done.truth]
        true = np.array([done.truth[stamp] for stamp in stamps])
        poses = np.array([found[stamp] for stamp in stamps])
        scaled = trajectory_errors(poses, true, True)
        as_is = trajectory_errors(poses, true, False)
        assert scaled is not None and as_is is not None
        spread = [np.linalg.norm(each[:, :3, 3] - each[:, :3, 3].mean(axis=0)) for each in (poses, true)]
        report(
            f"room {seed}: {len(stamps)} frames, {parts} part(s), {'metres' if is_metric else 'scale unknown'}; length "
            f"{100 * (spread[0] / spread[1] - 1):+.2f} %; ATE {1e3 * as_is.ate:.0f} mm as it is, "
            f"{1e3 * scaled.ate:.0f} mm with scale"
        )
        for line in done.back_end:
            report(f"  {line.strip()}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["drone", "clock", "motions", "walk"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 5], help="rooms and walks")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each walk")
    parser.add_argument("--keep", type=Path, help="folder to keep the rendered recordings in")
    parser.add_argument("--out", type=Path, help="file for the tables")
    arguments = parser.parse_args()
    report = Report()
    report(f"benchmarks/inertial.py, {platform.machine()}, GTSAM {version('gtsam')}; settings by default")
    if "clock" in arguments.parts:
        clock(report, arguments.data)
    if "drone" in arguments.parts:
        drone(report, arguments.data)
    if "motions" in arguments.parts:
        motions(report)
    if "walk" in arguments.parts:
        walk(report, arguments.keep, arguments.seeds, arguments.seconds)
    if arguments.out:
        arguments.out.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
