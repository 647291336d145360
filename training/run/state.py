"""The state that a run needs to resume exactly, as named tensors and JSON values.

The optimizer's state is stored by parameter name, with PyTorch's `get_optimizer_state_dict` and
`set_optimizer_state_dict`. Values that are not tensors, such as Prodigy's estimates, are stored as JSON with the groups'
settings: `torch.distributed.checkpoint` would pickle them, and reading or checking them would execute a pickle. PyTorch
allocates the optimizer's tensors by a step with a learning rate of 0, so resuming needs the memory and time of a step.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from ...uniworld_core.errors import UniWorldError
from ..engine import checkpoints
from ..engine.checkpoints import EMA, OPTIMIZER, WEIGHTS
from ..engine.ema import ShardedEMA
from ..engine.parallel import World

_RANDOM = "random/"


class Trainable(Protocol):
    """A model with the parameters that train; see `setup.PreparedModel`."""

    @property
    def tower(self) -> nn.Module: ...

    @property
    def trained(self) -> Mapping[str, nn.Parameter]: ...


@dataclass(frozen=True)
class TrainingState:
    """A model in training with its optimizer and EMA, on the processes `world`. `restore` needs newly built ones."""

    model: Trainable
    optimizer: Optimizer
    ema: ShardedEMA
    world: World

    def tensors(self) -> dict[str, Tensor]:
        """Return {name in a checkpoint: tensor} of parameters, EMA, optimizer, and this process's random state."""
        tensors = self._model_tensors()
        for name, kept in self._optimizer_state()["state"].items():
            tensors.update({_key(name, key): value for key, value in kept.items() if torch.is_tensor(value)})
        tensors.update({_RANDOM + key: value for key, value in _random_state(self.world).items()})
        return tensors

    def values(self) -> dict[str, Any]:
        """Return the rest of the state as JSON values."""
        kept = self._optimizer_state()
        plain = {
            name: {key: value for key, value in kept["state"].get(name, {}).items() if not torch.is_tensor(value)}
            for name in self.model.trained
        }
        groups = [{key: value for key, value in group.items() if key != "params"} for group in kept["param_groups"]]
        return {"ema_updates": self.ema.updates, "optimizer": {"values": plain, "groups": groups}}

    def restore(self, checkpoint: Path, values: Mapping[str, Any], others: Mapping[str, Tensor] | None = None) -> None:
        """Load a checkpoint, which any number of processes may have written.

        Args:
            checkpoint: a finished checkpoint.
            values: its `values`.
            others: {name in the checkpoint: tensor} of further tensors to load into.

        Raises:
            UniWorldError: the checkpoint is damaged, or its tensors do not match the model.
        """
        kept = checkpoints.stored_tensors(checkpoint)
        tensors = self._model_tensors() | dict(others or {})
        _check_shapes(checkpoint, tensors, kept)
        # Allocates every tensor of the optimizer, sharded like its parameter.
        state = cast(dict[str, Any], get_optimizer_state_dict(self.model.tower, self.optimizer))
        for name, room in state["state"].items():
            found = {key: value for key, value in room.items() if _key(name, key) in kept}
            tensors.update({_key(name, key): value for key, value in found.items()})
            state["state"][name] = {**values["optimizer"]["values"][name], **found}
        mine = {
            key: torch.empty(kept[key][0], dtype=kept[key][1])
            for key in (_RANDOM + key for key in _random_state(self.world))
            if key in kept
        }
        tensors.update(mine)
        checkpoints.load_into(checkpoint, tensors, self.world)
        self.ema.updates = values["ema_updates"]
        state["state"] = {name: held for name, held in state["state"].items() if held}
        groups = zip(state["param_groups"], values["optimizer"]["groups"], strict=True)
        state["param_groups"] = [_group(new, old) for new, old in groups]
        options = StateDictOptions(strict=False)
        set_optimizer_state_dict(self.model.tower, self.optimizer, state, options=options)
        _restore_random({key[len(_RANDOM) :]: value for key, value in mine.items()}, self.world)

    def _model_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {WEIGHTS + name: value.detach() for name, value in self.model.trained.items()}
        return tensors | {EMA + name: value for name, value in self.ema.state().items()}

    def _optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state by parameter name.

        An optimizer without state is a special case, because PyTorch would take a step to initialize it.
        """
        if not self.optimizer.state:
            return {"state": {}, "param_groups": self.optimizer.state_dict()["param_groups"]}
        return cast(dict[str, Any], get_optimizer_state_dict(self.model.tower, self.optimizer))


def _key(name: str, key: str) -> str:
    return f"{OPTIMIZER}{name}/{key}"


def _check_shapes(
    checkpoint: Path, wanted: Mapping[str, Tensor], kept: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> None:
    for name, tensor in wanted.items():
        if name not in kept or kept[name][0] != tuple(tensor.shape):
            problem = f"has shape {list(kept[name][0])}" if name in kept else "is missing"
            raise UniWorldError(
                f"The checkpoint {checkpoint} does not match this model: {name} {problem}, expected shape "
                f"{list(tensor.shape)}. The run started from another model.checkpoint: restore that one."
            )


def _group(new: Mapping[str, object], kept: Mapping[str, object]) -> dict[str, object]:
    """Merge a group's settings from a checkpoint; JSON's lists become the tuples that optimizers expect."""
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
    # The choice of kernels depends on this machine, not on the one that wrote the checkpoint.
    settings.pop("foreach", None)
    return {**new, **settings}


def _random_state(world: World) -> dict[str, Tensor]:
    """Return the state of all generators that a library may use; training's own numbers need none (see `batch.Draws`)."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    others = {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss]}
    plain = json.dumps(others).encode()
    found = {
        f"{world.rank}/torch": torch.get_rng_state(),
        f"{world.rank}/others": torch.frombuffer(bytearray(plain), dtype=torch.uint8),
    }
    if world.device.type == "cuda":
        found[f"{world.rank}/cuda"] = torch.cuda.get_rng_state(world.device)
    return found


def _restore_random(kept: Mapping[str, Tensor], world: World) -> None:
    if f"{world.rank}/torch" in kept:
        torch.set_rng_state(kept[f"{world.rank}/torch"])
    if f"{world.rank}/cuda" in kept:
        torch.cuda.set_rng_state(kept[f"{world.rank}/cuda"], world.device)
    if f"{world.rank}/others" in kept:
        others = json.loads(kept[f"{world.rank}/others"].numpy().tobytes())
        version, numbers, gauss = others["python"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(tuple(others["numpy"]))
