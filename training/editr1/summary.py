"""Dry run of a run with rewards: its settings, what trains, and what an epoch costs."""

from __future__ import annotations

from ...uniworld_core import UniWorld
from ...uniworld_core.errors import counted
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
    number = "no end of prompts" if prompts.count is None else counted(prompts.count, "prompt")
    lines = (
        f"{trained:,} parameters train{layers}.",
        f"{number}; each epoch paints {pictures} pictures of {settings.groups} of them, with "
        f"{counted(settings.steps, 'forward pass', 'es')}",
        f"each, and trains on those that pass the filter, at {counted(settings.times, 'noise level')} with "
        f"{counted(policies, 'forward pass', 'es')} and",
        "one backward pass each.",
        *_preserved(config),
        _rewards(config),
    )
    return f"{to_toml(config)}\n" + "\n".join(f"# {line}" for line in lines)


def _preserved(config: EditR1Config) -> tuple[str, ...]:
    if not config.preserve.weight:
        return ()
    return (f"From epoch {config.preserve.start} on, the policy is held at the reference on preserved prompts.",)


def _rewards(config: EditR1Config) -> str:
    """Name the rewards with their shares, and those that are only recorded."""
    settings = config.reward
    weights = settings.weights or (1.0,) * len(settings.name)
    shares = [f"{weight / sum(weights):.2g} {name}" for name, weight in zip(settings.name, weights, strict=True)]
    watched = f", and {', '.join(settings.watch)} is only recorded" if settings.watch else ""
    return f"The reward is {' + '.join(shares) if len(shares) > 1 else settings.name[0]}{watched}."
