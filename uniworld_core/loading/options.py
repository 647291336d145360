"""Choices of the settings of a loaded model. This module does not import torch, so nodes and commands start fast."""

from __future__ import annotations

# How weights are stored in memory. The first is the default.
STORAGES = ("auto", "bfloat16", "int8", "fp8", "nf4")

# Where the weights of a part are kept while it does not run, and how they get to the device. The first is the default.
OFFLOADS = ("auto", "none", "blocks", "disk")

# What is compiled with torch.compile. The first is the default.
COMPILES = ("off", "blocks")

# Implementations of attention, by their names in diffusers. Those that download code are left out. The first is the default:
# torch's own choice, or that of the variable DIFFUSERS_ATTN_BACKEND.
ATTENTIONS = (
    "auto",
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_flash",
    "_native_math",
    "flash",
    "_flash_3",
    "sage",
    "xformers",
)
