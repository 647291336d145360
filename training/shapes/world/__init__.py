"""The world of shapes: scenes, their rendering, and their exact maps."""
