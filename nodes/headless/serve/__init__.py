"""The HTTP and WebSocket host: ComfyUI's editor and API over the one executor of the command line."""
