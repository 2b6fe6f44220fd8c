"""Settings of the back end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from loftr_ros.settings import Settings, setting


@dataclass(frozen=True)
class NoiseConfig(Settings):
    """What measured poses may be wrong by, beside what their covariances say: errors that many matches share."""

    live: ClassVar[bool] = True

    translation: float = setting(
        0.05,
        "Part of the distance between two keyframes by which their measured pose may be wrong",
        low=0.0,
        high=10.0,
    )
    translation_least: float = setting(
        0.01,
        "The same, added to it: in metres, or in the own unit of a single camera",
        unit="m",
        low=1e-4,
        high=10.0,
    )
    rotation: float = setting(0.3, "Angle by which a measured pose may be wrong", unit="deg", low=0.001, high=90.0)
    scale: float = setting(
        0.03,
        "Part by which a single camera's unit of length may change from one keyframe to the next",
        low=1e-4,
        high=1.0,
    )


@dataclass(frozen=True)
class LoopsConfig(Settings):
    """When a loop is believed."""

    live: ClassVar[bool] = True

    min_steps: int = setting(
        10,
        "Least steps between two keyframes of a trajectory whose pose by ~/relative_pose is taken as a loop: that of "
        "nearer ones shares its errors with the steps, and tells nothing more",
        low=2,
        high=10000,
    )
    inlier_probability: float = setting(
        0.99,
        "Part of the right loops that are kept where their errors are as stated: the larger, the more wrong ones stay",
        low=0.5,
        high=0.999999,
    )
    max_deviation: float = setting(
        3.0,
        "Standard deviations, by `noise`, by which a loop may contradict the steps between its two keyframes: one that "
        "contradicts them by more is a look-alike's, however many agree with it",
        low=1.0,
        high=1000.0,
    )
    odometry_cost: float = setting(
        20.0,
        "Rejected loops that must agree on a correction to rather reject one step from keyframe to keyframe",
        low=1.0,
        high=1000.0,
    )
    agreeing: int = setting(
        3,
        "Loops that must agree before two trajectories are joined: of two robots, two runs, or before and after the "
        "camera was lost",
        low=1,
        high=100,
    )
    max_disagreement: float = setting(
        0.2, "How far two of these may disagree on where one trajectory is in the other", unit="m", low=0.0, high=100.0
    )
    max_turn_disagreement: float = setting(
        5.0, "The same of the angle, and of the ratio of two units of length in percent", unit="deg", low=0.1, high=90.0
    )


@dataclass(frozen=True)
class LocalConfig(Settings):
    """Smoothing of the newest keyframes of a single camera."""

    live: ClassVar[bool] = True

    window: int = setting(
        0,
        "Newest keyframes of a single camera that are smoothed together by the landmarks that they share, the older "
        "half of which stays where it is; 0 for none, else at least 4",
        low=0,
        high=50,
    )


@dataclass(frozen=True)
class InertialConfig(Settings):
    """An inertial sensor beside a single camera: it tells metres and gravity."""

    live: ClassVar[bool] = True

    window: float = setting(
        15.0,
        "Keyframes of this time are solved together with accelerations and angular velocities; until metres are known, "
        "shorter times too, from a third of it on",
        unit="s",
        low=3.0,
        high=60.0,
    )
    max_scale_std: float = setting(
        0.08,
        "Standard deviation of the unit's length in metres, as a part of it, above which it counts as unknown",
        low=0.001,
        high=1.0,
    )
    max_misfit: float = setting(
        2.0,
        "Sum of squared deviations for each degree of freedom above which the sensor contradicts the images: its "
        "mounting, its stamps or its noise is not as stated",
        low=0.1,
        high=1000.0,
    )
    gyroscope_noise: float = setting(
        0.002, "Noise density of the angular velocity", unit="rad/s/sqrt(Hz)", low=1e-6, high=1.0
    )
    gyroscope_bias_walk: float = setting(
        0.0005, "Random walk of the angular velocity's bias", unit="rad/s/sqrt(s)", low=1e-8, high=1.0
    )
    gyroscope_bias: float = setting(
        0.1, "Standard deviation of that bias at the start", unit="rad/s", low=1e-6, high=10.0
    )
    accelerometer_noise: float = setting(
        0.02, "Noise density of the acceleration", unit="m/s^2/sqrt(Hz)", low=1e-6, high=10.0
    )
    accelerometer_bias_walk: float = setting(
        0.003, "Random walk of the acceleration's bias", unit="m/s^2/sqrt(s)", low=1e-8, high=10.0
    )
    accelerometer_bias: float = setting(
        0.3, "Standard deviation of that bias at the start", unit="m/s^2", low=1e-6, high=10.0
    )
    gravity: float = setting(9.81, "Acceleration of gravity", unit="m/s^2", low=0.1, high=30.0)


@dataclass(frozen=True)
class MapConfig(Settings):
    """What is kept of the scene."""

    landmarks: int = setting(200, "Landmarks that are kept of each keyframe, at most", low=0, high=100000, live=True)


@dataclass(frozen=True)
class BackEndConfig:
    """Everything that the back end can be told."""

    noise: NoiseConfig = field(default_factory=NoiseConfig)
    loops: LoopsConfig = field(default_factory=LoopsConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    inertial: InertialConfig = field(default_factory=InertialConfig)
    map: MapConfig = field(default_factory=MapConfig)
