"""Dry run of a run with rewards: its settings, what trains, and what an epoch costs."""

from __future__ import annotations

from ...uniworld_core import UniWorld
from ..config.editr1 import EditR1Config
from ..config.file import to_toml
from .adapters import Adapters
from .prompts import Prompts


def summarize_editr1(config: EditR1Config, model: UniWorld, prompts: Prompts) -> str:
    """Return the summary as comments of a TOML file with all settings. No weights are read.

    Raises:
        UniWorldError: the model has none of `policy.targets`.
    """
    settings = config.editr1
    network = model.parts["dit"].build()  # type: ignore[attr-defined]
    network.requires_grad_(config.policy.kind == "full")
    layers = ""
    if config.policy.kind == "lora":
        layers = f" in the adapters of {len(Adapters(network, config.policy, 0).layers)} layers"
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    pictures = settings.groups * settings.group_size
    policies = 1 + (settings.old != "on_policy") + bool(config.loss.kl)
    number = "no end of prompts" if prompts.count is None else f"{prompts.count} prompts"
    lines = (
        f"{trained:,} parameters train{layers}.",
        f"{number}; each epoch paints {pictures} pictures of {settings.groups} of them, with {settings.steps} forward passes",
        f"each, and trains on those that pass the filter, at {settings.times} noise levels with {policies} forward passes and",
        "one backward pass each.",
    )
    return f"{to_toml(config)}\n" + "\n".join(f"# {line}" for line in lines)
