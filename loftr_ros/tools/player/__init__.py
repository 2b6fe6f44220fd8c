"""Publishes a source as camera topics: `loftr_ros play`."""
