"""The back end's node: what comes in, the work in a process of its own, what goes out."""
