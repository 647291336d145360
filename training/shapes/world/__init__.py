"""The world of shapes: scenes, how they are drawn, and their exact maps."""
