"""All that a run must keep to go on as if it had never ended, as named tensors and plain values."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..uniworld_core.errors import UniWorldError
from . import checkpoints
from .checkpoints import EMA, OPTIMIZER, WEIGHTS
from .ema import ShardedEMA
from .parallel import World

_RANDOM = "random/"


def state_tensors(
    trained: Mapping[str, nn.Parameter], optimizer: Optimizer, ema: ShardedEMA, world: World
) -> dict[str, Tensor]:
    """{name in a checkpoint: tensor} of what trains, its average, the optimizer, and this process's random state."""
    tensors: dict[str, Tensor] = {WEIGHTS + name: value.detach() for name, value in trained.items()}
    tensors.update({EMA + name: value for name, value in ema.state().items()})
    for name, parameter in trained.items():
        kept = optimizer.state.get(parameter, {})
        tensors.update({_key(name, key): value for key, value in kept.items() if torch.is_tensor(value)})
    tensors.update({_RANDOM + key: value for key, value in _random_state(world).items()})
    return tensors


def state_values(trained: Mapping[str, nn.Parameter], optimizer: Optimizer, ema: ShardedEMA) -> dict[str, Any]:
    """The rest of it, as JSON has it."""
    plain = {
        name: {key: value for key, value in optimizer.state.get(parameter, {}).items() if not torch.is_tensor(value)}
        for name, parameter in trained.items()
    }
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.state_dict()["param_groups"]
    ]
    return {"ema_updates": ema.updates, "optimizer": {"values": plain, "groups": groups}}


def restore(
    checkpoint: Path,
    values: Mapping[str, Any],
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    ema: ShardedEMA,
    world: World,
) -> None:
    """Put a checkpoint's state into what a run has built anew, on however many processes.

    Args:
        checkpoint: a finished one.
        values: its `state_values`.

    Raises:
        UniWorldError: it is damaged, or of other tensors.
    """
    kept = checkpoints.stored(checkpoint)
    tensors: dict[str, Tensor] = {WEIGHTS + name: value.detach() for name, value in trained.items()}
    tensors.update({EMA + name: value for name, value in ema.state().items()})
    _check_shapes(checkpoint, tensors, kept)
    moments = {name: _moments(name, parameter, kept) for name, parameter in trained.items()}
    for named in moments.values():
        tensors.update(named)
    mine = {
        key: torch.empty(kept[key][0], dtype=kept[key][1])
        for key in (_RANDOM + key for key in _random_state(world))
        if key in kept
    }
    tensors.update(mine)
    checkpoints.load_into(checkpoint, tensors, world)
    ema.updates = values["ema_updates"]
    _restore_optimizer(optimizer, values["optimizer"], trained, moments)
    _restore_random({key[len(_RANDOM) :]: value for key, value in mine.items()}, world)


def _key(name: str, key: str) -> str:
    return f"{OPTIMIZER}{name}/{key}"


def _check_shapes(checkpoint: Path, wanted: Mapping[str, Tensor], kept: Mapping[str, Any]) -> None:
    for name, tensor in wanted.items():
        if name not in kept or kept[name][0] != tuple(tensor.shape):
            there = f"has shape {list(kept[name][0])}" if name in kept else "is missing"
            raise UniWorldError(
                f"The checkpoint {checkpoint} does not fit this model: {name} {there}, and the model's is "
                f"{list(tensor.shape)}. The run began from another model.checkpoint."
            )


def _moments(name: str, parameter: nn.Parameter, kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """Room for an optimizer's tensors of one parameter, spread as it is where they have its shape."""
    prefix = _key(name, "")
    room = {}
    for key, (shape, dtype) in kept.items():
        if key.startswith(prefix) and "/" not in key[len(prefix) :]:
            like = shape == tuple(parameter.shape) and shape
            room[key] = torch.zeros_like(parameter.detach()) if like else torch.empty(shape, dtype=dtype)
    return room


def _restore_optimizer(
    optimizer: Optimizer,
    values: Mapping[str, Any],
    trained: Mapping[str, nn.Parameter],
    moments: Mapping[str, Mapping[str, Tensor]],
) -> None:
    state = {}
    # An optimizer numbers its parameters group by group, which need not be the model's order.
    names = {id(parameter): name for name, parameter in trained.items()}
    numbered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    for index, name in enumerate(numbered):
        named = moments[name]
        tensors = {key.rpartition("/")[2]: tensor for key, tensor in named.items()}
        if tensors or values["values"][name]:
            state[index] = {**values["values"][name], **tensors}
    present = optimizer.state_dict()["param_groups"]
    groups = [{**new, **_tuples(old)} for new, old in zip(present, values["groups"], strict=True)]
    # How it is computed is this machine's matter, not the checkpoint's.
    groups = [{**group, "foreach": new.get("foreach")} for group, new in zip(groups, present)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone, where optimizers have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}


def _random_state(world: World) -> dict[str, Tensor]:
    """The state of every generator that some library may draw from; training itself keeps none (see `batch.Draws`)."""
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
