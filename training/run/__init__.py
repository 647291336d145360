"""A training run: its folder, initial weights, loop, metrics and validation."""
