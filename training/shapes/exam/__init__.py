"""Evaluation of a model on held-out tasks, and its report."""
