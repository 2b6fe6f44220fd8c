"""What goes out: messages, publishers, odometry, diagnostics."""
