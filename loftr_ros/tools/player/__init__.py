"""`loftr_ros play`: publishes a source as camera topics."""
