"""Choices of the settings `storage` and `offload`. Importing this imports no torch, so that nodes and commands can declare it."""

from __future__ import annotations

# How weights are held in memory; the first is the default.
STORAGES = ("auto", "bfloat16", "int8", "fp8", "nf4")

# Where the weights of a part are while it does not run, and how it gets them; the first is the default.
OFFLOADS = ("auto", "none", "blocks", "disk")
