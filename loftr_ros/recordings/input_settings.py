"""Settings of input images and calibrations, for the node and for the commands over recordings."""

from __future__ import annotations

from dataclasses import dataclass

from loftr_ros.frontend.config import MONO
from loftr_ros.recordings.stereo_calibration import pose_of
from loftr_ros.settings import ConfigError, Settings, setting


@dataclass(frozen=True)
class InputParameters(Settings):
    """Input images and calibrations."""

    image_transport: str = setting(
        "raw",
        "Type of the image topics: raw for sensor_msgs/Image on `image`, compressed for "
        "sensor_msgs/CompressedImage on `image/compressed`",
        choices=("raw", "compressed"),
    )
    camera_info: str = setting(
        "synchronized",
        "Source of the calibration: synchronized for the CameraInfo with the image's stamp, latest for the newest"
        " CameraInfo (for drivers that publish it rarely), none for no calibration and no poses",
        choices=("synchronized", "latest", "none"),
    )
    rectified: bool = setting(
        False,
        "Whether images are rectified (image_rect); the camera is then P of the CameraInfo without distortion, "
        "instead of K and D",
    )
    left_from_right: tuple[float, ...] = setting(
        (0.0,) * 7,
        "Pose of the right camera in the left camera's optical frame: x y z in metres, quaternion x y z w; zeros "
        "for R and P of the CameraInfos",
    )
    sync: str = setting(
        "exact",
        "Pairing of an image with the right image or depth image: exact for equal stamps, approximate for stamps "
        "within `input.slop`",
        choices=("exact", "approximate"),
    )
    slop: float = setting(
        0.01,
        "Maximum difference between the stamps of an approximate pair; keep it below half of the time between two"
        " images",
        unit="s",
        low=0.0001,
        high=10.0,
    )
    stamps: str = setting(
        "message",
        "Source of the stamps: message for the messages' own, arrival for the time of arrival, for drivers whose "
        "stamps are zero or repeat; pairs are then those within `input.slop`",
        choices=("message", "arrival"),
    )
    queue_size: int = setting(
        10, "Maximum number of images and CameraInfos that wait for their partner", low=1, high=1000
    )
    white_level: int = setting(
        65535,
        "Value of white in 16-bit images (4095 for a 12-bit sensor); 0 stretches each image by its own range",
        low=0,
        high=65535,
    )
    mask: str = setting(
        "",
        "Image file of the camera's size; pixels that are 0 in it are ignored, such as the robot's own body; "
        "empty for no mask",
    )
    mask_topic: str = setting(
        "none",
        "Masks of moving things on `mask` (mono8, of the image's size): none; synchronized for the mask with the "
        "image's stamp (`input.sync`); latest for the newest one, of detectors slower than the camera",
        choices=("none", "synchronized", "latest"),
    )
    mask_ignores: str = setting(
        "zero",
        "Pixels to ignore in the masks of `mask`: zero as in `input.mask`, or nonzero for detectors that mark what "
        "moves",
        choices=("zero", "nonzero"),
    )
    mask_dilation: int = setting(
        4, "Width of a border to ignore around the masked pixels of `mask`", unit="px", low=0, high=500
    )
    mask_wait: float = setting(
        0.2,
        "Maximum time that an image waits for its mask; without one it is processed with the newest mask",
        unit="s",
        low=0.0,
        high=2.0,
    )
    mask_age: float = setting(
        0.5,
        "Maximum difference in time between an image and another image's mask that is used for it",
        unit="s",
        low=0.0,
        high=10.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        pose_of(self.left_from_right)

    def check_mode(self, mode: str) -> None:
        """Check that the input topics fit the mode.

        Args:
            mode: of `ScaleConfig`.

        Raises:
            ConfigError: the mode needs calibrations, and none are subscribed to; or masks cannot be paired.
        """
        if mode != MONO and self.camera_info == "none":
            raise ConfigError(
                f"mode is '{mode}' and input.camera_info is 'none'; depth needs the cameras' calibrations: set "
                "input.camera_info to 'synchronized' or 'latest', or mode to 'mono'"
            )
        if self.stamps == "arrival" and self.mask_topic == "synchronized":
            raise ConfigError(
                "input.stamps is 'arrival' and input.mask_topic is 'synchronized'; a mask arrives later than its "
                "image, so its time of arrival does not tell which image is its own: set input.mask_topic to 'latest'"
            )
