"""What the `storage` setting may be. Importing this imports no torch, so that nodes and commands can declare it."""

from __future__ import annotations

# How weights are held in memory; the first is the default.
STORAGES = ("auto", "bfloat16", "int8", "fp8", "nf4")
