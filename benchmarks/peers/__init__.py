"""Other projects' matchers, in their own environment and process."""
