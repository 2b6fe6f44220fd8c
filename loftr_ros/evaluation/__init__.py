"""Evaluation: pose errors, match errors, trajectories and their pictures."""
