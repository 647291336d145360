"""UniWorld on ComfyUI's own types: MODEL, VAE, CLIP, CLIP_VISION, NOISE.

`lazy` and `nodes` are imported everywhere; the other modules import ComfyUI, and are imported only inside of it.
"""
