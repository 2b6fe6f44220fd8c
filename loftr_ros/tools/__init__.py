"""What a robot does without: running recordings, viewing, explaining, playing, the demo."""
