"""Choices of the settings `storage` and `offload`. This module does not import torch, so nodes and commands start fast."""

from __future__ import annotations

# How weights are stored in memory. The first is the default.
STORAGES = ("auto", "bfloat16", "int8", "fp8", "nf4")

# Where the weights of a part are kept while it does not run, and how they get to the device. The first is the default.
OFFLOADS = ("auto", "none", "blocks", "disk")
