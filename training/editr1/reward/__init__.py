"""Rewards of painted pictures: the protocol, and its implementations that need no particular data."""
