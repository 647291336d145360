"""A run's folder: whose it is, of which configuration, and the names of what lies in it.

config.toml       every setting          checkpoints/   see `checkpoints`
metrics.jsonl     one line a step        validation/    contact sheets
skipped.jsonl     bad samples by name    tensorboard/   its files
sizes.safetensors of the targets, on which the order of the samples hangs
start.safetensors what model.start gave and does not train, if anything
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

from ...uniworld_core.errors import UniWorldError
from ..config.file import load_config, to_toml
from ..config.settings import Config
from ..engine import checkpoints
from ..files import locked, make_folder, write_atomic

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
SIZES = "sizes.safetensors"
START = "start.safetensors"
CHECKPOINTS = "checkpoints"
VALIDATION = "validation"
TENSORBOARD = "tensorboard"
_LOCK = "lock"

# What may differ between a run folder and the configuration that goes on with it, as no loss depends on it but in the
# last digits. That annotations and weights are the same is checked by fingerprints.
CHANGEABLE_KEYS = {
    "model.checkpoint",
    "model.flux",
    "model.siglip",
    "model.start",
    "data.list",
    "data.shards",
    "data.cache",
    "data.bad_limit",
    "data.workers",
    "run.steps",
    "run.micro_batch_size",
    "run.device",
    "run.parallel",
    "run.save_every",
    "run.keep",
    "run.keep_best",
    "run.validate_every",
    "run.log_every",
    "run.tensorboard",
    "run.wandb",
}
_CHANGEABLE_SECTIONS = {"validation"}


def differing_keys(old: Config, new: Config) -> list[str]:
    """What differs between two configurations and changes what is learned, as "section.key was X and is now Y"."""
    # A cosine's rate at every step depends on where it ends.
    free = CHANGEABLE_KEYS - {"run.steps"} if new.optimizer.schedule == "cosine" else CHANGEABLE_KEYS
    found = []
    for section in fields(Config):
        if section.name in _CHANGEABLE_SECTIONS:
            continue
        before, after = getattr(old, section.name), getattr(new, section.name)
        for key in fields(before):
            name, was, now = f"{section.name}.{key.name}", getattr(before, key.name), getattr(after, key.name)
            if was != now and name not in free:
                found.append(f"{name} was {was!r} and is now {now!r}")
    return found


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make the folder and hold it for one trainer, within the context. What did not begin leaves no folder behind.

    Raises:
        UniWorldError: another trainer works in it, or it cannot be made.
    """
    is_new = not folder.exists()
    make_folder(folder / CHECKPOINTS)
    busy = f"Another trainer works in the run folder {folder}: wait for it, end it, or name another folder."
    with locked(folder / _LOCK, wait=False, busy=busy):
        try:
            yield
        finally:
            if is_new and not (folder / CONFIG).exists():
                _remove_new_folder(folder)


def _remove_new_folder(folder: Path) -> None:
    with suppress(OSError):  # a system that holds on to the open lock file keeps the folder, which is as before
        for file in (SIZES, f"{SIZES}.lock", START):
            (folder / file).unlink(missing_ok=True)
        (folder / CHECKPOINTS).rmdir()
        (folder / _LOCK).unlink()
        folder.rmdir()


def resume_from(folder: Path, config: Config) -> Path | None:
    """The checkpoint that a run of this configuration goes on from, checked; None for a run that begins.

    A folder without a finished checkpoint has nothing to lose, and begins anew.

    Raises:
        UniWorldError: the folder's run has another configuration (every key is listed), or the checkpoint is damaged.
    """
    newest = checkpoints.latest(folder / CHECKPOINTS)
    if newest is None:
        return None
    different = differing_keys(read_config(folder), config)
    if different:
        raise UniWorldError(
            f"The run folder {folder} has checkpoints of another configuration: {'; '.join(different)}. Set these as they "
            "were to go on with it, or name another folder."
        )
    checkpoints.verify(newest)
    return newest


def read_config(folder: Path) -> Config:
    """The configuration of a run. Raises UniWorldError if the folder holds none, or a damaged one."""
    if not (folder / CONFIG).is_file():
        raise UniWorldError(f"{folder} is no run's folder: it has no {CONFIG}.")
    return load_config(folder / CONFIG)


def write_config(folder: Path, config: Config) -> None:
    """Keep the configuration with its run. Raises UniWorldError if it cannot be written."""
    write_atomic(folder / CONFIG, to_toml(config).encode())
