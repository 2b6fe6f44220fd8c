"""The command line `loftr_ros`: one module a command."""
