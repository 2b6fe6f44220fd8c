"""Starts a ZED camera and the front end on it.

    ros2 launch loftr_ros zed.launch.py camera_model:=zed2i              # mode:=stereo: both rectified images
    ros2 launch loftr_ros zed.launch.py camera_model:=zedx mode:=rgbd    # the left one, and the SDK's depth

Every argument of front_end.launch.py may be given too, and reaches it; so do those of zed_wrapper's
zed_camera.launch.py, such as `serial_number:=`. Topics and parameters are those of zed-ros2-wrapper 5.1 and later
(stereolabs/zed-ros2-wrapper, CHANGELOG), which begin with /CAMERA_NAME/zed_node; before 5.1 the left image was called
left/image_rect_color. zed_wrapper is built from its source, with Stereolabs' SDK.

In `stereo` the SDK's own depth and tracking are switched off, which leaves the GPU to the front end. The images come
rectified, without distortion.
"""

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare


def generate_launch_description() -> LaunchDescription:
    """The arguments, and what is made of them."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "mode",
                default_value="stereo",
                choices=["stereo", "rgbd"],
                description="stereo: both images. rgbd: the left image and the SDK's depth.",
            ),
            DeclareLaunchArgument("camera_model", description="As zed_wrapper names it: zed2i, zedm, zedx, ..."),
            DeclareLaunchArgument(
                "camera_name", default_value="zed", description="Name, and namespace, of the camera."
            ),
            OpaqueFunction(function=start),
        ]
    )


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The camera and the front end; runs once the arguments' values are known."""
    mode, model, name = (LaunchConfiguration(each).perform(context) for each in ("mode", "camera_model", "camera_name"))
    topics = f"/{name.strip('/')}/zed_node"
    overrides = {"pos_tracking.pos_tracking_enabled": "false"}
    if mode == "stereo":
        overrides |= {"video.publish_left_right": "true", "depth.depth_mode": "NONE"}
        front_end = {
            "image": f"{topics}/left/color/rect/image",
            "right_image": f"{topics}/right/color/rect/image",
        }
    else:
        overrides |= {"video.publish_rgb": "true", "depth.publish_depth_map": "true"}
        front_end = {
            "image": f"{topics}/rgb/color/rect/image",
            "depth_image": f"{topics}/depth/depth_registered",
        }
    camera = {
        "camera_model": model,
        "camera_name": name,
        "publish_tf": "false",  # of its own odometry
        "param_overrides": ";".join(f"{key}:={value}" for key, value in overrides.items()),
    }
    return [
        include("zed_wrapper", "zed_camera.launch.py", camera),
        include("loftr_ros", "front_end.launch.py", {"mode": mode, "rectified": "true", **front_end}),
    ]


def include(package: str, file: str, arguments: dict[str, str]) -> GroupAction:
    """A package's launch file, whose arguments are its own: `namespace` and others mean different things to each."""
    path = PathJoinSubstitution([FindPackageShare(package), "launch", file])
    return GroupAction([IncludeLaunchDescription(path, launch_arguments=arguments.items())])
