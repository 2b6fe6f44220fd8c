"""The archive, the search for loops, and sharing places with other robots, in the node."""
