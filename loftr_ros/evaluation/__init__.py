"""Measuring: rendered truth, pose errors, trajectories."""
