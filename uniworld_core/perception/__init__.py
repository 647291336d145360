"""Perception: tasks, and how to read the maps that are painted for them."""
