"""Starts the front end, and robot_localization's extended Kalman filter that fuses its odometry.

    ros2 launch loftr_ros robot_localization.launch.py mode:=rgbd image:=/camera/color/image_raw \
        depth_image:=/camera/depth/image_raw

Every argument of front_end.launch.py may be given and reaches it; `ekf_params:=` names a file instead of ekf.yaml
beside this one. The filter needs to know where the camera is on the robot: `odometry.base_from_camera` of the front
end, or a transform from base_link to the camera's optical frame on /tf_static (docs/node.md).

robot_localization is a package of its own (ros-<distro>-robot-localization). Its `ekf_node` is a plain node up to
Kilted; where it is a lifecycle node, it waits for `ros2 lifecycle set /ekf_filter_node configure`, then `activate`.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare


def generate_launch_description() -> LaunchDescription:
    """The filter, and the front end by its own launch file."""
    params = DeclareLaunchArgument(
        "ekf_params",
        default_value=str(Path(__file__).with_name("ekf.yaml")),
        description="Parameters of robot_localization's filter.",
    )
    front_end = IncludeLaunchDescription(
        PathJoinSubstitution([FindPackageShare("loftr_ros"), "launch", "front_end.launch.py"])
    )
    kalman_filter = Node(
        package="robot_localization",
        executable="ekf_node",
        name="ekf_filter_node",
        parameters=[LaunchConfiguration("ekf_params")],
        output="screen",
    )
    return LaunchDescription([params, front_end, kalman_filter])
