"""Scoring of the published benchmarks: pure functions from replies, detections and answers to tables.

A library so far: no command generates pictures or asks judges yet.
"""
