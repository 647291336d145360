"""Perception: tasks, and conversion of the painted maps to data."""
