"""ComfyUI's basic nodes, built in so that workflows run without ComfyUI."""
