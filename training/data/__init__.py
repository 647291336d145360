"""What is trained on: the published annotations, their check, their order, their shards and their cache."""
