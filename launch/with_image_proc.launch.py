"""Rectifies a camera's images with image_proc, and starts the front end on them.

    ros2 launch loftr_ros with_image_proc.launch.py image:=/camera/image_raw

An example to start your own from: image_proc's rectifier is a component, which shares a process, and so its images
without copies, with whatever else is put into the same container (a camera driver, a debayer). The front end is written
in Python, which no container loads: it stands beside it. It needs no rectified images, since it takes distortion out of
points rather than images; do this where something else needs them anyway. image_proc is a package of its own
(ros-<distro>-image-proc).
"""

from __future__ import annotations

import os

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import ComposableNodeContainer
from launch_ros.descriptions import ComposableNode
from launch_ros.substitutions import FindPackageShare

from loftr_ros.ros.transport import VARIABLES, provide_profile


def generate_launch_description() -> LaunchDescription:
    """The argument, and what is made of it; every argument of front_end.launch.py may be given too, and reaches it."""
    image = DeclareLaunchArgument(
        "image",
        default_value="/camera/image_raw",
        description="Topic of the camera's raw images; its calibration is taken from `camera_info` beside it.",
    )
    return LaunchDescription([image, OpaqueFunction(function=rectify_and_match)])


def rectify_and_match(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The rectifier in its container, and the front end on what it publishes."""
    image = LaunchConfiguration("image").perform(context).strip()
    beside = image.rpartition("/")[0]
    rectifier = ComposableNode(
        package="image_proc",
        plugin="image_proc::RectifyNode",
        name="rectify",
        remappings=[
            ("image", image),
            ("camera_info", f"{beside}/camera_info"),
            ("image_rect", f"{beside}/image_rect"),
        ],
        extra_arguments=[{"use_intra_process_comms": True}],
    )
    container = ComposableNodeContainer(
        package="rclcpp_components",
        executable="component_container",
        name="image_proc_container",
        namespace="",
        composable_node_descriptions=[rectifier],
        additional_env=room_for_images(),
        output="screen",
    )
    front_end = IncludeLaunchDescription(
        PathJoinSubstitution([FindPackageShare("loftr_ros"), "launch", "front_end.launch.py"]),
        launch_arguments={"image": f"{beside}/image_rect", "rectified": "true"}.items(),
    )
    return [container, front_end]


def room_for_images() -> dict[str, str]:
    """Environment of a process that publishes images: Fast DDS's profile, where the user has none."""
    environment = dict(os.environ)
    provide_profile(environment)
    return {name: environment[name] for name in VARIABLES if name in environment}
