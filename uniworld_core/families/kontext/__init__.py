"""FLUX.1 Kontext (arXiv 2506.15742): FLUX's transformer with the latents of references among its tokens."""
