"""Test files by topic: `pytest --group places` runs one group, and `colcon test` each as a CTest."""

from __future__ import annotations

GROUPS = {
    "networks": "checkpoint coarse compact efficient efficient_parity embedded_weights explain export fixed_program "
    "gpu_faults half_precision int8 "
    "loftr matcher openvino parity ring tensorrt weights",
    "front_end": "background budget camera cell_depth covariance gyroscope keyframes local_affine localization mask "
    "match_metrics metric_pose moving_things optical_flow pipeline quick_matching recovery refinement relative_pose "
    "small_motion sparse_front_end stereo_calibration stereo_offset stream trust wheel_odometry wide_pairs",
    "recordings": "bags doctor exit_codes cli fuzz look_ahead names params_file reading run source_companions sources "
    "text_formats video view",
    "places": "archive archive_files back_end inertial loops place_conversion place_descriptor place_detector "
    "place_expected place_query revisits",
    "fleet": "fleet fleet_nodes keyframe_messages",
    "node": "back_end_node decoding images messages moving_masks node node_archive node_depth node_imu node_places "
    "odometry_output pairing parameters scheduling spare_time statistics synchronizer worker",
    "programs": "benchmarks demo dist docs example_nodes examples launch packaging player public_face transport "
    "wording",
    "evaluation": "evaluate localise metrics scene shutter visualization",
    "training": "adaptation batched_pairs place_training training training_data training_photos",
}
"""Names of a group's files, without `test_` and `.py`."""


def files(group: str) -> set[str]:
    """The names of a group's files."""
    return {f"test_{name}.py" for name in GROUPS[group].split()}
