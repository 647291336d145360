"""Run the frozen parts over the samples of a configuration, once, and keep the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...uniworld_core.errors import UniWorldError
from ..config.settings import Config
from ..data.cache import Cache
from ..data.cache_fill import create_or_open, fill
from ..engine.parallel import start_world
from .setup import open_encoder, open_samples


def fill_cache(
    config: Config, progress: Callable[[int, int, dict[str, object]], None] | None = None, batch: int = 8
) -> Cache:
    """Run the frozen parts over the samples that `data.cache` lacks; under torchrun every process takes its share.

    Args:
        progress: told how many of how many samples of this process are there, and how many are of no use.
        batch: samples that the frozen parts take at once.

    Raises:
        UniWorldError: the model, the data or the cache folder cannot be used, or too many samples are of no use.
    """
    config.check_complete()
    if not config.data.cache:
        raise UniWorldError("data.cache is not set: say where to keep the cache (--set data.cache=FOLDER).")
    with start_world(config.run.device) as world:
        encoder, samples = open_encoder(config, world.device), open_samples(config)
        cache = create_or_open(Path(config.data.cache), samples, encoder)

        def told(done: int, total: int) -> None:
            if progress is not None:
                progress(done, total, {"bad": len(cache.bad)})

        fill(
            cache,
            samples,
            encoder,
            batch=batch,
            rank=world.rank,
            world=world.size,
            workers=config.data.workers,
            bad_limit=config.data.bad_limit,
            progress=told,
        )
        return cache
