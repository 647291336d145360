"""How a step is carried out: parallelism, precision, optimizers, EMA and checkpoints."""
