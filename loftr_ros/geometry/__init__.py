"""Cameras and poses: two-view geometry, pose from depth, and their foundations. numpy and OpenCV only."""
