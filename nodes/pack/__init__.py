"""The nodes, by what they are for."""
