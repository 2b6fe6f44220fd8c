"""`compact`, our own small network for streams."""
