"""Settings of input images and calibrations, for the node and for the commands over recordings."""

from __future__ import annotations

from dataclasses import dataclass

from loftr_ros.frontend.config import MONO
from loftr_ros.recordings.stereo_calibration import pose_of
from loftr_ros.settings import ConfigError, Settings, setting


@dataclass(frozen=True)
class InputParameters(Settings):
    """Settings of the input."""

    image_transport: str = setting(
        "raw",
        "raw subscribes to sensor_msgs/Image on `image`, compressed to sensor_msgs/CompressedImage on "
        "`image/compressed`",
        choices=("raw", "compressed"),
    )
    camera_info: str = setting(
        "synchronized",
        "synchronized pairs each image with the CameraInfo of its stamp; latest takes the newest CameraInfo, for "
        "drivers that publish it seldom; none does without poses",
        choices=("synchronized", "latest", "none"),
    )
    rectified: bool = setting(
        False,
        "Whether the images were rectified (image_rect): their camera is then P of the CameraInfo, without distortion, "
        "rather than K and D",
    )
    left_from_right: tuple[float, ...] = setting(
        (0.0,) * 7,
        "Where the right camera stands in the left one's optical frame: x y z in metres and the quaternion x y z w; "
        "zeros take it from R and P of the CameraInfos",
    )
    sync: str = setting(
        "exact",
        "exact pairs an image with the right image or depth image of its own stamp, approximate with one within "
        "`input.slop`",
        choices=("exact", "approximate"),
    )
    slop: float = setting(
        0.01,
        "Time that the stamps of what approximate pairs may differ by, less than half of the time between two images",
        unit="s",
        low=0.0001,
        high=10.0,
    )
    stamps: str = setting(
        "message",
        "message takes the stamps of the messages, arrival the time at which each came, for drivers that stamp with "
        "zero or repeat their stamps; pairs are then those within `input.slop`",
        choices=("message", "arrival"),
    )
    queue_size: int = setting(10, "Images and CameraInfos that wait for their partner, at most", low=1, high=1000)
    white_level: int = setting(
        65535,
        "Value of 16-bit images that counts as white (4095 for a 12-bit sensor); 0 stretches each image by its own "
        "range",
        low=0,
        high=65535,
    )
    mask: str = setting(
        "",
        "Image file of the camera's size that is 0 where pixels are to be ignored, as the robot's own body; empty for "
        "none",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "left_from_right", tuple(self.left_from_right))  # of ROS's array
        super().__post_init__()
        pose_of(self.left_from_right)

    def check_mode(self, mode: str) -> None:
        """Check that the input topics fit the mode.

        Args:
            mode: of `ScaleConfig`.

        Raises:
            ConfigError: the mode needs calibrations, and none are subscribed to.
        """
        if mode != MONO and self.camera_info == "none":
            raise ConfigError(
                f"mode is '{mode}' and input.camera_info is 'none'; depth needs the cameras' calibrations: set "
                "input.camera_info to 'synchronized' or 'latest', or mode to 'mono'"
            )
