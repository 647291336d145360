"""What a training step computes: batches, the flow-matching loss and the trained parameters."""
