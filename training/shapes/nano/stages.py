"""Configuration and cache of nano's two stages, for nano itself and for checking the paper's claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ....uniworld_core.errors import UniWorldError
from ...config.file import load_config
from ...config.settings import Config
from ...data.cache_fill import create_or_open, fill
from ...run.fill_cache import fill_cache
from ...run.setup import open_encoder, open_samples
from ..tasks.dataset import LIST
from .jobs import Job, run_jobs
from .recipe import Recipe, to_recipe

RECIPE = "recipe.json"
Stage = Literal["stage1", "stage2"]
_CACHE_BATCH = 64
# Samples per pass on a CPU. Passes group samples of similar length, so small passes need less padding, which costs a CPU
# more than additional calls. Of 2, 4, 8, 16 and 32 in batches of 32 this is the fastest, 1.2 times as fast as 16.
_CPU_PASS = 8


def stage_config(folder: Path, recipe: Recipe, name: Stage, device: str) -> Config:
    """Return the configuration of a stage of nano.

    Args:
        folder: folder of nano's run.
        recipe: its recipe.
        name: the stage.
        device: "cpu" or "cuda".
    """
    length = recipe.stage1 if name == "stage1" else recipe.stage2
    config = load_config(f"nano_{name}")
    standins = folder / "standins"
    model = replace(
        config.model,
        checkpoint=str(folder / "start"),
        flux=str(standins / "flux"),
        siglip=str(standins / "siglip"),
        start=() if name == "stage1" else (str(folder / "stage1"),),
    )
    data = replace(config.data, list=str(folder / "data" / LIST), cache=str(folder / "cache"))
    warmup = min(config.optimizer.warmup, length.steps // 10)
    optimizer = replace(config.optimizer, lr=length.learning_rate, warmup=warmup)
    micro = min(length.batch, _CPU_PASS) if device == "cpu" else length.batch
    run = replace(config.run, steps=length.steps, batch_size=length.batch, micro_batch_size=micro, device=device)
    return replace(config, model=model, data=data, optimizer=optimizer, run=run)


def fill_cache_together(
    config: Config, processes: int, progress: Callable[[int, int, dict[str, object]], None]
) -> None:
    """Fill the cache of a configuration, in several processes if many samples are missing."""
    if processes > 1 and _missing(config) > _CACHE_BATCH:
        run_jobs([Job(f"share {rank}", _fill_share, (rank, config, processes)) for rank in range(processes)], processes)
    fill_cache(config, progress, _CACHE_BATCH)


def recipe_of(folder: Path) -> Recipe:
    """Read the recipe of a run of nano.

    Raises:
        UniWorldError: the folder is not a run of nano.
    """
    file = folder / RECIPE
    try:
        return to_recipe(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UniWorldError(
            f"'{folder}' is not a run of nano: its {RECIPE} cannot be read ({error}). Create one with "
            f"`uniworld train nano --folder {folder}`, or give another folder."
        ) from error


def _missing(config: Config) -> int:
    """Return the number of samples that are missing in the cache."""
    return create_or_open(
        Path(config.data.cache), open_samples(config), open_encoder(config, config.run.device)
    ).missing


def _fill_share(rank: int, config: Config, world: int) -> None:
    """Fill one process's share of the cache."""
    encoder, samples = open_encoder(config, config.run.device), open_samples(config)
    cache = create_or_open(Path(config.data.cache), samples, encoder)
    fill(cache, samples, encoder, _CACHE_BATCH, rank, world, bad_limit=config.data.bad_limit)
