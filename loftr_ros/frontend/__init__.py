"""The streaming front end: keyframes, two-view geometry and the pipeline, over the matcher."""
