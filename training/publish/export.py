"""Export a run's weights as a checkpoint in UniWorld-V1's published format, for the nodes and the published programs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...uniworld_core.backbones.qwen_files import read_tokenizer
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.checkpoint import check_checkpoint
from ...uniworld_core.families.uniworld_v1.projectors import TASK_HEAD_FILE
from ...uniworld_core.loading.settings import read_json
from ...uniworld_core.loading.shipped import shipped_model
from ...uniworld_core.loading.weights import Shards
from ...uniworld_core.prompts.scope import SCOPE_FILE
from ..engine import checkpoints
from ..objective.names import TOWER_NAMES
from ..run.folder import CHECKPOINTS, CONFIG, START, read_config
from ..run.initial_weights import read_saved_weights
from .model_folder import INDEX_FILE, Source, copy_settings, new_folder, write_index, write_json
from .processor_files import add_processor_files


def export_run(
    run: Path, to: Path, step: int | None = None, raw: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Write the checkpoint that a run started from, with the run's weights in place of the originals.

    Args:
        run: the run's folder.
        to: the folder to create; it must not exist.
        step: step of a saved checkpoint; None takes the newest.
        raw: export the raw weights instead of their EMA.
        dtype: dtype of all tensors; None keeps each tensor's dtype in the starting checkpoint.

    Raises:
        UniWorldError: the run has no such checkpoint, it is damaged, its starting checkpoint is missing, or `to` cannot
            be written.
    """
    config = read_config(run)

    def read(checkpoint: Path) -> dict[str, torch.Tensor]:
        checkpoints.verify(checkpoint)
        return checkpoints.read_tensors(checkpoint, checkpoints.WEIGHTS if raw else checkpoints.EMA)

    trained = checkpoints.read_with_retry(lambda: find_checkpoint(run, step), read)
    # Weights from `model.start` that did not train are part of the run's model too.
    tensors = {**read_saved_weights(run / START), **trained}
    shipped = shipped_model(config.model.checkpoint)
    start = Path(config.model.checkpoint) if shipped is None else shipped.checkpoint
    if not start.is_dir():
        raise UniWorldError(
            f"The run {run} started from {start}, which does not exist: run the export in the folder where the run was "
            f"trained, or correct model.checkpoint in its {CONFIG}."
        )
    write_changed(start, {TOWER_NAMES.in_file(name): Source.of(tensor) for name, tensor in tensors.items()}, to, dtype)


def find_checkpoint(run: Path, step: int | None) -> Path:
    """Return the checkpoint of a step, or the newest. Raises UniWorldError if the run has none."""
    kept = {checkpoint.name: checkpoint for checkpoint in checkpoints.finished(run / CHECKPOINTS)}
    if not kept:
        raise UniWorldError(f"{run} has no finished checkpoint: resume training until it has one.")
    name = max(kept) if step is None else checkpoints.checkpoint_name(step)
    if name not in kept:
        raise UniWorldError(f"{run} has no checkpoint {name}: choose one of {', '.join(kept)}.")
    return kept[name]


def write_changed(start: Path, changed: Mapping[str, Source], to: Path, dtype: torch.dtype | None = None) -> None:
    """Write a copy of the checkpoint `start` with some tensors replaced; everything else is copied bit for bit.

    Shards without a changed tensor are copied as files; only one of the others is in memory at a time. The folder is
    written atomically, and only if the result can be opened.

    Args:
        start: a checkpoint folder in the published format; its routing head is copied too.
        changed: {published name: source of the new tensor}. Each is read once, when its shard is written, and cast to
            the dtype that the tensor has in `start`.
        to: the folder to create; it must not exist.
        dtype: write all tensors with this dtype instead.

    Raises:
        UniWorldError: a changed tensor is missing in `start` or has another shape there, its values are not finite or
            overflow the dtype, or `to` cannot be written.
    """
    shards = Shards(start)
    if shards.encodings:
        raise UniWorldError(
            f"{start} is quantized ({next(iter(shards.encodings))}), and its other tensors cannot be changed exactly: start "
            "from the float checkpoint, and convert the result."
        )
    _check(changed, shards)
    read_tokenizer(start)
    with new_folder(to) as folder:
        # The scope describes what `start` was trained on, which does not hold for other weights.
        copy_settings(start, folder, exclude=("config.json", SCOPE_FILE))
        add_processor_files(folder)
        config = read_json(start / "config.json")
        write_json(folder / "config.json", config | ({} if dtype is None else {"torch_dtype": _name(dtype)}))
        if (start / TASK_HEAD_FILE).is_file():
            shutil.copyfile(start / TASK_HEAD_FILE, folder / TASK_HEAD_FILE)
        total = sum(_write_shard(shards, file, changed, folder, dtype) for file in sorted(set(shards.files.values())))
        homes = {name: file.name for name, file in shards.files.items()}
        if (start / INDEX_FILE).is_file():  # a single shard may have an index too
            write_index(folder, homes, total)
        check_checkpoint(folder)


def _write_shard(
    shards: Shards, file: Path, changed: Mapping[str, Source], folder: Path, dtype: torch.dtype | None
) -> int:
    """Write one shard, or copy its file if none of its tensors changes. Return the size of its tensors in bytes."""
    names = [name for name, home in shards.files.items() if home == file]
    tensors: dict[str, torch.Tensor] = {}
    if dtype is None and not any(name in changed for name in names):
        shutil.copyfile(file, folder / file.name)
        return sum(math.prod(shards.shapes[name]) * _BYTES.get(shards.dtypes[name], 4) for name in names)
    for name, before in shards.read(names):
        assert isinstance(before, torch.Tensor), "quantized checkpoints are refused"
        after = changed[name].read().detach().cpu() if name in changed else before
        tensors[name] = _cast(name, after, dtype or before.dtype)
    save_file(tensors, folder / file.name, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast a tensor. Raises UniWorldError if it has values that are not finite or that overflow the dtype."""
    written = tensor.to(dtype).contiguous()
    if bool(torch.isfinite(written).all()):
        return written
    if bool(torch.isfinite(tensor).all()):
        raise UniWorldError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, which overflow {_name(dtype)}: choose another dtype."
        )
    raise UniWorldError(f"{name} has values that are not finite: export an earlier step.")


# Bytes per element, by safetensors' dtype names.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def _check(changed: Mapping[str, Source], shards: Shards) -> None:
    """Check that every changed tensor exists in `shards` with the same shape. Raises UniWorldError otherwise."""
    for name, source in changed.items():
        if name not in shards.shapes:
            raise UniWorldError(
                f"{shards.folder} has no tensor {name}, which was trained: it is not the checkpoint that the run started "
                "from. Restore that one."
            )
        if shards.shapes[name] != source.shape:
            raise UniWorldError(
                f"{name} has shape {list(shards.shapes[name])} in {shards.folder}, but {list(source.shape)} as trained: "
                "the folder is not the checkpoint that the run started from. Restore that one."
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
