"""Checks of a workflow before a run."""
