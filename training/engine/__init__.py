"""Execution of a training step: parallelism, precision, optimizers, EMA and checkpoints."""
