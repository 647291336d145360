"""Initial weights of a run: the checkpoint's, with replacements from other files and runs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.checkpoint import PROJECTOR_NAMES
from ...uniworld_core.families.uniworld_v1.comfy_files import REDUX_NAMES
from ...uniworld_core.loading.names import Names
from ...uniworld_core.loading.quantized import as_floats
from ...uniworld_core.loading.weights import Shards
from ..engine import checkpoints
from ..files import write_atomic
from ..objective.names import TOWER_NAMES
from .folder import CHECKPOINTS, START

# (prefix in a file, prefix in `DenoiseTower`): FLUX-Redux's embedder, the published names, and projectors under short
# names.
_FILE_NAMES = Names(
    (
        *((in_file, f"projectors.{rest}") for in_file, rest in REDUX_NAMES.prefixes),
        *TOWER_NAMES.prefixes,
        *((rest, f"projectors.{rest}") for _, rest in PROJECTOR_NAMES.prefixes),
        *((f"projectors.{rest}", f"projectors.{rest}") for _, rest in PROJECTOR_NAMES.prefixes),
        ("dit.transformer.", "dit.transformer."),
    )
)


@torch.no_grad()
def restore_float32(trained: Mapping[str, nn.Parameter], shards: Shards) -> None:
    """Load the checkpoint's float32 values into the trained parameters; loading as bfloat16 has rounded them.

    Args:
        trained: {name in `DenoiseTower`: float32 parameter}.
        shards: the files that the model was loaded from.
    """
    in_tower = {TOWER_NAMES.in_file(name): parameter for name, parameter in trained.items()}
    for in_file, tensor in shards.read(in_tower):
        in_tower[in_file].copy_(as_floats(tensor, torch.float32))


def find_initial_weights(paths: Sequence[str]) -> list[Path]:
    """Resolve `model.start` to files and checkpoints; a run's folder resolves to its newest checkpoint.

    Args:
        paths: safetensors or .bin files (FLUX-Redux, projectors, or published names), or folders of runs. Runs contribute
            their EMA weights and their own initial weights.

    Raises:
        UniWorldError: a folder is not a run with a finished checkpoint.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        checkpoint = checkpoints.latest(path / CHECKPOINTS)
        if checkpoint is None:
            raise UniWorldError(
                f"model.start contains the folder {path}, which is not a run with a finished checkpoint: give another "
                "folder, or remove it."
            )
        # Weights from that run's own model.start that it did not train are part of its model too.
        found += [path / START] if (path / START).is_file() else []
        found.append(checkpoint)
    return found


def read_initial_weights(found: Sequence[Path]) -> dict[str, Tensor]:
    """Read {name in `DenoiseTower`: tensor} from the paths of `find_initial_weights`; later paths override earlier ones.

    Raises:
        UniWorldError: a file is missing or damaged, or has a tensor with an unknown name.
    """
    tensors: dict[str, Tensor] = {}
    for path in found:
        tensors.update(_read_checkpoint(path) if path.is_dir() else _read_file(path))
    return tensors


def save_initial_weights(tensors: Mapping[str, Tensor], trained: Container[str], file: Path) -> None:
    """Save initial weights that do not train in the run's folder, because their source may change or disappear.

    Raises:
        UniWorldError: the file cannot be written.
    """
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in trained}
    if kept:
        write_atomic(file, save(kept))
    else:
        file.unlink(missing_ok=True)


def read_saved_weights(file: Path) -> dict[str, Tensor]:
    """Read the file of `save_initial_weights`, or nothing if there is none. Raises UniWorldError if it is damaged."""
    return _read_file(file) if file.is_file() else {}


@torch.no_grad()
def load_initial_weights(tower: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into the model by name.

    Raises:
        UniWorldError: the model has no parameter of a name, or one of another shape.
    """
    parameters = dict(tower.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters:
            raise UniWorldError(
                f"model.start has the tensor {name}, which this model does not have: it belongs to another model."
            )
        if parameters[name].shape != tensor.shape:
            raise UniWorldError(
                f"model.start has {name} with shape {list(tensor.shape)}, but this model has "
                f"{list(parameters[name].shape)}: it belongs to another model."
            )
        parameters[name].copy_(tensor)


def _read_checkpoint(checkpoint: Path) -> dict[str, Tensor]:
    checkpoints.verify(checkpoint)
    return checkpoints.read_tensors(checkpoint, checkpoints.EMA)


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            raw = load_file(file)
        else:
            raw = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise errors of many types
        raise UniWorldError(
            f"model.start contains {file}, which cannot be read ({error}): give a safetensors or .bin file of tensors, or "
            "the folder of a run."
        ) from error
    if not isinstance(raw, dict) or not all(torch.is_tensor(tensor) for tensor in raw.values()):
        raise UniWorldError(
            f"model.start contains {file}, which is not a dict of tensors: give a file with only named tensors."
        )
    named = {_FILE_NAMES.in_module(name): tensor for name, tensor in raw.items()}
    if None in named:
        unknown = [name for name in raw if _FILE_NAMES.in_module(name) is None]
        raise UniWorldError(
            f"model.start contains {file}, whose tensor {unknown[0]} does not belong to projectors or DiT: give "
            "FLUX-Redux's embedder, or projectors and DiT under their published names."
        )
    return {name: tensor for name, tensor in named.items() if name is not None}
