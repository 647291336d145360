"""Scoring of the published benchmarks: pure functions from replies, detections and answers to tables.

A library only: generating the pictures and querying the judge models is up to the caller.
"""
