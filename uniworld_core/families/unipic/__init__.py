"""Skywork UniPic-1: masked autoregression over tokens, with a language model in between (arXiv 2508.03320)."""
