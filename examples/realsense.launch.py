"""Starts a RealSense D400 camera and the front end on it.

    ros2 launch loftr_ros realsense.launch.py                # mode:=rgbd: colour, and depth registered to it
    ros2 launch loftr_ros realsense.launch.py mode:=stereo   # the two infrared cameras, the projector switched off

Every argument of front_end.launch.py may be given too, and reaches it; so do those of realsense2_camera's rs_launch.py,
such as `serial_no:=`. Topics and arguments are those of realsense-ros 4.55 and later (IntelRealSense/realsense-ros,
README and rs_launch.py), where they begin with /CAMERA_NAMESPACE/CAMERA_NAME. realsense2_camera is a package of its own
(ros-<distro>-realsense2-camera).

`rgbd` sees colour through a rolling shutter; the infrared cameras have a global one, see wider, and know metres by
their baseline: take `stereo` for a robot that moves fast.
"""

from pathlib import Path

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
                default_value="rgbd",
                choices=["rgbd", "stereo"],
                description="rgbd: colour and registered depth. stereo: the two infrared cameras.",
            ),
            DeclareLaunchArgument("camera_namespace", default_value="camera", description="Namespace of the camera."),
            DeclareLaunchArgument("camera_name", default_value="camera", description="Name of the camera's node."),
            OpaqueFunction(function=start),
        ]
    )


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The camera and the front end; runs once the arguments' values are known."""
    mode, namespace, name = (
        LaunchConfiguration(each).perform(context) for each in ("mode", "camera_namespace", "camera_name")
    )
    topics = "/" + "/".join(part.strip("/") for part in (namespace, name) if part.strip("/"))
    is_stereo = mode == "stereo"
    camera = {
        "camera_namespace": namespace,
        "camera_name": name,
        "enable_sync": "true",
        "enable_color": str(not is_stereo).lower(),
        "enable_depth": str(not is_stereo).lower(),
        "align_depth.enable": str(not is_stereo).lower(),
        "enable_infra1": str(is_stereo).lower(),
        "enable_infra2": str(is_stereo).lower(),
    }
    if is_stereo:
        camera["config_file"] = str(Path(__file__).with_name("realsense_stereo.yaml"))
        front_end = {
            "image": f"{topics}/infra1/image_rect_raw",
            "right_image": f"{topics}/infra2/image_rect_raw",
            "rectified": "true",
        }
    else:
        front_end = {
            "image": f"{topics}/color/image_raw",
            "depth_image": f"{topics}/aligned_depth_to_color/image_raw",
        }
    return [
        include("realsense2_camera", "rs_launch.py", camera),
        include("loftr_ros", "front_end.launch.py", {"mode": mode, **front_end}),
    ]


def include(package: str, file: str, arguments: dict[str, str]) -> GroupAction:
    """A package's launch file, whose arguments are its own: `log_level` and others mean different things to each."""
    path = PathJoinSubstitution([FindPackageShare(package), "launch", file])
    return GroupAction([IncludeLaunchDescription(path, launch_arguments=arguments.items())])
