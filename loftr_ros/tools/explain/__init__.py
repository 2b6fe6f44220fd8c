"""Looks into the networks: what chosen points attend to, and how they find their matches."""
