"""Export a run with rewards: adapters as files, or a checkpoint if everything was trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.table import family_of
from ...uniworld_core.loading.shipped import shipped_model
from ..config.editr1 import EditR1Config
from ..engine import checkpoints
from ..objective.names import TOWER_NAMES
from ..publish.export import find_checkpoint, write_changed
from ..publish.model_folder import Source
from ..run.folder import CONFIG, read_any_config
from .adapters import write_adapters

_NETWORK = "dit.transformer."
_SETTINGS = "config.json"


def check_exportable(config: EditR1Config) -> None:
    """Check that what a run trains can be written. A missing starting checkpoint is left to whoever opens it.

    Raises:
        UniWorldError: everything trains, and the starting checkpoint is of a family whose checkpoints cannot be written.
    """
    start = _start(config)
    if config.policy.kind == "full" and start.is_dir() and not (start / _SETTINGS).is_file():
        raise UniWorldError(
            f"policy.kind is 'full', and {start} is not a checkpoint in UniWorld-V1's format: only such checkpoints can be "
            "exported after training of all parameters. Train adapters: set policy.kind to 'lora'."
        )


def export_editr1(
    run: Path, to: Path, step: int | None = None, raw: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Write what a run has trained.

    Adapters are written in the published layout, and as one file for diffusers and ComfyUI (`write_adapters`). After
    training of all parameters, the checkpoint that the run started from is written with the run's weights.

    Args:
        run: the run's folder.
        to: the folder to create; it must not exist.
        step: epoch of a saved checkpoint; None takes the newest.
        raw: export the raw weights instead of their EMA.
        dtype: dtype of a checkpoint's tensors; None keeps those of the starting checkpoint. Adapters are float32.

    Raises:
        UniWorldError: the run has no such checkpoint, it is damaged, its starting checkpoint is missing or of a family whose
            checkpoints cannot be written, or `to` exists or cannot be written.
    """
    config = read_any_config(run)
    if not isinstance(config, EditR1Config):
        raise UniWorldError(f"{run} is not a run with rewards.")

    def read(checkpoint: Path) -> dict[str, Tensor]:
        checkpoints.verify(checkpoint)
        return checkpoints.read_tensors(checkpoint, checkpoints.WEIGHTS if raw else checkpoints.EMA)

    trained = checkpoints.read_with_retry(lambda: find_checkpoint(run, step), read)
    if config.policy.kind == "lora":
        if to.exists():
            raise UniWorldError(f"{to} already exists: choose another folder.")
        names = {name: name.removeprefix(_NETWORK).removeprefix("dit.") for name in trained}
        weights = {names[name]: tensor for name, tensor in trained.items()}
        write_adapters(weights, config.policy, config.model.checkpoint, to, _family(config))
        return
    start = _start(config)
    if not (start / _SETTINGS).is_file():
        raise UniWorldError(
            f"The run {run} started from {start}, which is not a checkpoint in UniWorld-V1's format: correct "
            f"model.checkpoint in its {CONFIG}; only such checkpoints can be written, besides adapters (policy.kind = 'lora')."
        )
    write_changed(start, {TOWER_NAMES.in_file(name): Source.of(tensor) for name, tensor in trained.items()}, to, dtype)


def _family(config: EditR1Config) -> str | None:
    """Return the family of the checkpoint that a run starts from; None if it is not there any more."""
    try:
        return family_of(_start(config)).name
    except UniWorldError:
        return None


def _start(config: EditR1Config) -> Path:
    """Return the folder of the checkpoint that a run starts from."""
    shipped = shipped_model(config.model.checkpoint)
    return Path(config.model.checkpoint) if shipped is None else shipped.checkpoint
