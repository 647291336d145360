"""The command `uniworld chat`."""
