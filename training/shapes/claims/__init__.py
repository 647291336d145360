"""Checks of the paper's claims on small models."""
