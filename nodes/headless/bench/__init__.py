"""Scoring of the published benchmarks: pure functions from items, replies and detections to tables."""
