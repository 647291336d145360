"""Weights, settings and tokenizers out of model folders, strictly."""
