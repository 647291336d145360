"""The embedded host: runs workflows of ComfyUI's graph nodes without ComfyUI."""
