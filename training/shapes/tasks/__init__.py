"""The tasks in the world of shapes, and their training data."""
