"""A run's weights as a checkpoint in UniWorld-V1's published format, as the nodes and every published program read it."""

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
from ..objective.names import TRAINEE_NAMES
from ..run.folder import CHECKPOINTS, CONFIG, START, read_config
from ..run.initial_weights import read_kept
from .model_folder import INDEX_FILE, Source, copy_settings, new_folder, write_index, write_json
from .processor_files import complete


def export_run(
    run: Path, to: Path, step: int | None = None, raw: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Write a run's weights over the checkpoint that it started from.

    Args:
        run: the run's folder.
        to: the folder to make; it must not be there.
        step: of a checkpoint that was kept; None takes the newest.
        raw: the weights as trained instead of their average.
        dtype: the type of all tensors; None leaves each as it is in the start checkpoint.

    Raises:
        UniWorldError: the run has no such checkpoint, it is damaged, its start is gone, or `to` cannot be written.
    """
    config = read_config(run)

    def read(checkpoint: Path) -> dict[str, torch.Tensor]:
        checkpoints.verify(checkpoint)
        return checkpoints.read_tensors(checkpoint, checkpoints.WEIGHTS if raw else checkpoints.EMA)

    trained = checkpoints.read_found(lambda: _checkpoint(run, step), read)
    # What the run took from elsewhere and did not train belongs to its model as well.
    tensors = {**read_kept(run / START), **trained}
    shipped = shipped_model(config.model.checkpoint)
    start = Path(config.model.checkpoint) if shipped is None else shipped.checkpoint
    if not start.is_dir():
        raise UniWorldError(
            f"The run {run} began from {start}, which is not there: export in the folder where it was trained, or mend "
            f"model.checkpoint in its {CONFIG}."
        )
    write_changed(
        start, {TRAINEE_NAMES.in_file(name): Source.of(tensor) for name, tensor in tensors.items()}, to, dtype
    )


def _checkpoint(run: Path, step: int | None) -> Path:
    kept = {checkpoint.name: checkpoint for checkpoint in checkpoints.complete(run / CHECKPOINTS)}
    if not kept:
        raise UniWorldError(f"{run} has no finished checkpoint: train on until it has one.")
    name = max(kept) if step is None else checkpoints.checkpoint_name(step)
    if name not in kept:
        raise UniWorldError(f"{run} has no checkpoint {name}; it kept {', '.join(kept)}.")
    return kept[name]


def write_changed(start: Path, changed: Mapping[str, Source], to: Path, dtype: torch.dtype | None = None) -> None:
    """Write the checkpoint `start` once more with some tensors changed; everything else is as it was, bit for bit.

    Shards without a changed tensor are copied; of the others one is held at a time. The folder appears whole, and
    only if it can be opened.

    Args:
        start: a checkpoint folder in the published format; its routing head is carried along.
        changed: {published name: where it comes from}; read when it is written, once, in the type that the tensor of
            that name has in `start`.
        to: the folder to make; it must not be there.
        dtype: the type of all tensors instead.

    Raises:
        UniWorldError: a tensor that `start` lacks, has in another shape, or with values that are not finite, or not in the
            type that is written; or `to` cannot be written.
    """
    shards = Shards(start)
    _check(changed, shards)
    read_tokenizer(start)
    with new_folder(to) as folder:
        copy_settings(start, folder, but=("config.json", SCOPE_FILE))
        complete(folder)
        config = read_json(start / "config.json")
        write_json(folder / "config.json", config | ({} if dtype is None else {"torch_dtype": _name(dtype)}))
        if (start / TASK_HEAD_FILE).is_file():
            shutil.copyfile(start / TASK_HEAD_FILE, folder / TASK_HEAD_FILE)
        total = sum(_write_shard(shards, file, changed, folder, dtype) for file in sorted(set(shards.files.values())))
        homes = {name: file.name for name, file in shards.files.items()}
        if (start / INDEX_FILE).is_file():  # one shard may have an index as well
            write_index(folder, homes, total)
        check_checkpoint(folder)


def _write_shard(
    shards: Shards, file: Path, changed: Mapping[str, Source], folder: Path, dtype: torch.dtype | None
) -> int:
    """Write one shard anew, or copy it if nothing in it changes; gives the bytes of its tensors."""
    names = [name for name, home in shards.files.items() if home == file]
    tensors: dict[str, torch.Tensor] = {}
    if dtype is None and not any(name in changed for name in names):
        shutil.copyfile(file, folder / file.name)
        return sum(math.prod(shards.shapes[name]) * _BYTES.get(shards.dtypes[name], 4) for name in names)
    for name, before in shards.read(names):
        after = changed[name].read().detach().cpu() if name in changed else before
        tensors[name] = _cast(name, after, dtype or before.dtype)
    save_file(tensors, folder / file.name, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in that type. Raises UniWorldError if it has values that are not finite, or not in that type."""
    written = tensor.to(dtype).contiguous()
    if bool(torch.isfinite(written).all()):
        return written
    if bool(torch.isfinite(tensor).all()):
        raise UniWorldError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, more than {_name(dtype)} can hold: write another type."
        )
    raise UniWorldError(f"{name} holds values that are not finite: export an earlier step.")


# How safetensors calls the types of published weights, and their bytes.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def _check(changed: Mapping[str, Source], shards: Shards) -> None:
    """Raises UniWorldError unless `shards` have all that is changed, in its shape."""
    for name, source in changed.items():
        if name not in shards.shapes:
            raise UniWorldError(
                f"{shards.folder} has no tensor {name}, which was trained: it is not what the run began from."
            )
        if shards.shapes[name] != source.shape:
            raise UniWorldError(
                f"{name} has shape {list(shards.shapes[name])} in {shards.folder}, and {list(source.shape)} as trained: "
                "the folder is not what the run began from."
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
