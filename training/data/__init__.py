"""Training data: published annotations, checks, shards, the cache, and the order of samples."""
