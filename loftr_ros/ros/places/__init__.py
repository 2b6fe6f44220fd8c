"""Archive, loop search, and sharing places with other robots, in the node."""
