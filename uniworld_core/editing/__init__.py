"""Edits: masks of what they changed, loss weights, and compositing over the original."""
