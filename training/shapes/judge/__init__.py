"""The judge of painted pictures."""
