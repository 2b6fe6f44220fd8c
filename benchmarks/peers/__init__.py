"""Matchers of others, in an environment and a process of their own."""
