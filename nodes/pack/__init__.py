"""The nodes, by family of use."""
