"""Cameras and poses: two-view geometry, pose by depth, and what both rest on. numpy and OpenCV only."""
