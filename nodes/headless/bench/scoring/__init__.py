"""Scores of the benchmarks: pure functions from replies to scores and their means."""
