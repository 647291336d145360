"""How nano is trained: the length of every step, from `recipe.toml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("recipe.toml")


@dataclass(frozen=True)
class Length:
    """Of one training: optimizer steps, the highest learning rate, samples a step, and the highest learning rate of
    Muon, or 0 where AdamW trains the matrices too."""

    steps: int
    learning_rate: float
    batch: int
    matrix_rate: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """The lengths of all steps.

    Attributes:
        vae, vlm, siglip, flux: the stand-ins.
        decoder: the VAE's, which goes on alone.
        samples: training tasks that are drawn, written and cached for stages 1 and 2.
        stage1, stage2: of the published recipe.
        routing: prompts that the routing head learns from.
        seed: of everything.
    """

    vae: Length
    decoder: Length
    vlm: Length
    siglip: Length
    flux: Length
    samples: int
    stage1: Length
    stage2: Length
    routing: int
    seed: int


def read_recipe(name: str) -> Recipe:
    """The recipe of that name: "full", "gpu" or "quick"."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return to_recipe(tomllib.loads(FILE.read_text(encoding="utf-8"))[name])


def to_recipe(raw: Mapping[str, object]) -> Recipe:
    """A recipe out of TOML or JSON."""
    return Recipe(**{field.name: _value(raw[field.name]) for field in fields(Recipe)})


def _value(raw: object) -> Any:
    return Length(**raw) if isinstance(raw, dict) else raw
