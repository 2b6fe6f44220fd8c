"""The command line `loftr_ros`: one module for each command."""
