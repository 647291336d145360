"""UniWorld on ComfyUI's own types: MODEL, VAE, CLIP, CLIP_VISION, NOISE.

`lazy` and `nodes` do not import ComfyUI. The other modules do, and are imported only inside it.
"""
