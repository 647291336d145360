"""Strict loading of weights, settings and tokenizers from model folders."""
