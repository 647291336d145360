"""UniWorld-V1 (arXiv 2506.03147)."""
