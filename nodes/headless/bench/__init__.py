"""Measure editors and workflows on published benchmarks.

The modules of each benchmark's scores are pure functions from replies, detections and answers to tables. `suites/` reads the
items from the user's download, `judging/` asks a judge model, and the other modules are the steps of a run.
"""
