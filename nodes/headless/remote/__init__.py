"""Workflows on running servers: ComfyUI's HTTP API and socket from the client's side, for `--server URL`."""
