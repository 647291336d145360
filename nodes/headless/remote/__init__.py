"""The client side of ComfyUI's HTTP and WebSocket API, for `--server URL`."""
