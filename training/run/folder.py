"""A run's folder: its lock, its configuration, and the names of its files.

config.toml       every setting          checkpoints/   see `checkpoints`
metrics.jsonl     one line a step        validation/    contact sheets
skipped.jsonl     bad samples by name    tensorboard/   event files
groups/           contact sheets of a run with rewards, and rollouts/, those of its running epoch
sizes.safetensors sizes of the targets, which determine the order of the samples
start.safetensors weights from model.start that do not train, if any
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

from ...uniworld_core.errors import UniWorldError
from ..config.editr1 import EditR1Config
from ..config.file import load_any, load_config, to_toml
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

# Keys that may change when a run resumes, because they affect losses only by rounding. Fingerprints check that the
# annotations and the weights are still the same.
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
# The same for runs with rewards.
CHANGEABLE_EDITR1_KEYS = {key for key in CHANGEABLE_KEYS if not key.startswith("data.")} | {
    "data.metadata",
    "data.list",
    "data.bad_limit",
    "policy.checkpointing",
    "reward.watch",
    "reward.url",
    "reward.batch",
    "reward.timeout",
    "reward.attempts",
    "reward.ray",
    "reward.workers",
    "reward.max_failed",
    "run.sheet_every",
    "run.sheet_groups",
}

RunConfig: TypeAlias = "Config | EditR1Config"
_KINDS: dict[type, str] = {Config: "training on targets", EditR1Config: "training with rewards"}


def differing_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the differences of two configurations that change training, as "section.key was X and is now Y"."""
    if type(old) is not type(new):
        return [f"the kind was {_KINDS[type(old)]} and is now {_KINDS[type(new)]}"]
    before, after = _values(old), _values(new)
    names = (name for name in _fixed_keys(new) if before[name] != after[name])
    return [f"{name} was {before[name]!r} and is now {after[name]!r}" for name in names]


def fixed_settings(config: RunConfig) -> str:
    """Return the settings that a run must keep when it resumes, as a text that is the same for equal ones."""
    values = _values(config)
    return "\n".join(f"{name} = {values[name]!r}" for name in _fixed_keys(config))


def _fixed_keys(config: RunConfig) -> list[str]:
    free = set(CHANGEABLE_KEYS if isinstance(config, Config) else CHANGEABLE_EDITR1_KEYS)
    if config.optimizer.schedule == "cosine":  # its learning rate depends on the total number of steps
        free.discard("run.steps")
    if isinstance(config, EditR1Config) and config.editr1.mean == "published":  # which averages in micro-batches
        free.discard("run.micro_batch_size")
    return [name for name in _values(config) if name not in free and name.partition(".")[0] not in _CHANGEABLE_SECTIONS]


def _values(config: RunConfig) -> dict[str, Any]:
    """Return {"section.key": value}."""
    sections = ((section.name, getattr(config, section.name)) for section in fields(config))
    return {f"{name}.{key.name}": getattr(one, key.name) for name, one in sections for key in fields(one)}


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Create the folder and lock it for one trainer within the block. A run that fails to start leaves no folder.

    Raises:
        UniWorldError: another trainer uses the folder, or it cannot be created.
    """
    is_new = not folder.exists()
    make_folder(folder / CHECKPOINTS)
    busy = f"Another trainer uses the run folder {folder}: wait for it, stop it, or choose another folder."
    with locked(folder / _LOCK, wait=False, busy=busy):
        try:
            yield
        finally:
            if is_new and not (folder / CONFIG).exists():
                _remove_new_folder(folder)


def _remove_new_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows cannot delete the open lock file; the folder then stays, which does no harm
        for file in (SIZES, f"{SIZES}.lock", START):
            (folder / file).unlink(missing_ok=True)
        (folder / CHECKPOINTS).rmdir()
        (folder / _LOCK).unlink()
        folder.rmdir()


def resume_from(folder: Path, config: RunConfig) -> Path | None:
    """Return the verified checkpoint that a run of this configuration resumes from, or None for a new run.

    A run without a finished checkpoint starts from scratch, with any configuration.

    Raises:
        UniWorldError: the run in the folder has another configuration (every key is listed), or its checkpoint is damaged.
    """
    newest = checkpoints.latest(folder / CHECKPOINTS)
    if newest is None:
        return None
    different = differing_keys(read_any_config(folder), config)
    if different:
        raise UniWorldError(
            f"The run folder {folder} has checkpoints of another configuration: {'; '.join(different)}. Restore these "
            "settings to resume the run, or choose another folder."
        )
    checkpoints.verify(newest)
    return newest


def read_config(folder: Path) -> Config:
    """Read the configuration of a run. Raises UniWorldError if it is missing or invalid."""
    return load_config(_config_of(folder))


def read_any_config(folder: Path) -> RunConfig:
    """Read the configuration of a run of either kind. Raises UniWorldError if it is missing or invalid."""
    return load_any(_config_of(folder))


def _config_of(folder: Path) -> Path:
    file = folder / CONFIG
    if not file.is_file():
        raise UniWorldError(
            f"{folder} is not a run's folder: it has no {CONFIG}. Give a folder that `uniworld train` has made."
        )
    return file


def write_config(folder: Path, config: RunConfig) -> None:
    """Save the configuration in the run's folder. Raises UniWorldError if it cannot be written."""
    write_atomic(folder / CONFIG, to_toml(config).encode())
