"""Latents, schedules and the sampler, of any model that paints."""
