"""Output: messages, publishers, odometry, diagnostics."""
