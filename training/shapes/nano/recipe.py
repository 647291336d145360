"""Nano's recipe: hyperparameters of every training, from `recipe.toml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("recipe.toml")


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of one training.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak learning rate.
        batch: batch size.
        matrix_rate: peak learning rate of Muon for matrices; 0 means that AdamW trains them too.
    """

    steps: int
    learning_rate: float
    batch: int
    matrix_rate: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of all trainings.

    Attributes:
        vae, vlm, siglip, flux: the stand-ins.
        decoder: the VAE's decoder, which is then trained further with a frozen encoder.
        samples: number of training tasks that are generated and cached for stages 1 and 2.
        stage1, stage2: the stages of the published recipe.
        routing: number of prompts for the routing head.
        seed: seed of everything.
    """

    vae: Hyperparameters
    decoder: Hyperparameters
    vlm: Hyperparameters
    siglip: Hyperparameters
    flux: Hyperparameters
    samples: int
    stage1: Hyperparameters
    stage2: Hyperparameters
    routing: int
    seed: int


def read_recipe(name: str) -> Recipe:
    """Read a recipe: "full", "gpu" or "quick"."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return to_recipe(tomllib.loads(FILE.read_text(encoding="utf-8"))[name])


def to_recipe(raw: Mapping[str, object]) -> Recipe:
    """Build a recipe from parsed TOML or JSON."""
    return Recipe(**{field.name: _value(raw[field.name]) for field in fields(Recipe)})


def _value(raw: object) -> Any:
    return Hyperparameters(**raw) if isinstance(raw, dict) else raw
