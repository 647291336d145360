"""Training UniWorld: data, stages, loss, EMA, loop and evaluation, without any graph editor."""
