"""Latent formats, schedules and the sampler, for painters of any family."""
