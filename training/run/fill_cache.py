"""Fill the cache of a configuration: run the frozen parts over its samples once and save the outputs."""

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
    """Encode the samples that are missing in `data.cache`; under torchrun every process computes its share.

    Args:
        config: the configuration; `data.cache` is the folder.
        progress: called with this process's number of finished samples, their total, and {"bad": invalid samples}.
        batch: batch size of the frozen parts.

    Raises:
        UniWorldError: the model, the data or the cache folder cannot be used, or too many samples are invalid.
    """
    config.check_complete()
    if not config.data.cache:
        raise UniWorldError("data.cache is not set: give a folder for the cache (--set data.cache=FOLDER).")
    with start_world(config.run.device) as world:
        encoder, samples = open_encoder(config, world.device), open_samples(config)
        cache = create_or_open(Path(config.data.cache), samples, encoder)

        def report(done: int, total: int) -> None:
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
            progress=report,
        )
        return cache
