"""A training run from start to end: its folder, its loop, metrics and validation."""
