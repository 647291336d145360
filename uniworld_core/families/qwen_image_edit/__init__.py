"""Qwen-Image-Edit: the first release and those from 2509 on, as folders in diffusers layout."""
