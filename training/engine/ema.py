"""The exponential moving average of what trains, in float32, spread over the processes (the paper's figure 6).

Of every tensor each process keeps and updates its own local_rows only, about 1/N of them: those that FSDP2 gives it, or, where
every process has the whole model, those that FSDP2 would. Spread or not, a checkpoint holds the same named tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .optimizer import is_sharded, local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def ema_decay(update: int, limit: float) -> float:
    """The decay of an update, counted from 0: min((1 + s) / (10 + s), limit), which lets go of the start fast."""
    return min((1 + update) / (10 + update), limit)


class ShardedEMA:
    """The average of named parameters, begun at their present values.

    Args:
        parameters: {name: parameter}, alike in every process; whole ones, or spread by FSDP2 on dimension 0.
        decay: the limit of the decay.
        rank, world: this process and how many there are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, rank: int = 0, world: int = 1) -> None:
        self.parameters, self.decay, self.rank, self.world = dict(parameters), decay, rank, world
        self.updates = 0
        # A copy even where the parameter is float32 already: the average must not be its memory.
        self.local_rows = {name: self._local_rows(value).float().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present values, after an optimizer step."""
        kept = ema_decay(self.updates, self.decay)
        for name, parameter in self.parameters.items():
            self.local_rows[name].lerp_(self._local_rows(parameter).float(), 1.0 - kept)
        self.updates += 1

    def gather(self) -> Iterator[tuple[str, Tensor]]:
        """(name, the whole averaged tensor), one after another; every process must go through all of it."""
        for name in self.local_rows:
            yield name, self._full(name)

    def state(self) -> dict[str, Tensor]:
        """{name: average} for torch.distributed.checkpoint: spread tensors where there are several processes."""
        return {
            name: self._sharded(name) if self.world > 1 else local_rows for name, local_rows in self.local_rows.items()
        }

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the parameters have the averaged values, and afterwards their own again; for every process at once.

        The own values wait in the CPU's memory.
        """
        own = {name: local(value).detach().to("cpu", copy=True) for name, value in self.parameters.items()}
        try:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    value = self.local_rows[name] if is_sharded(parameter) else self._full(name)
                    local(parameter).copy_(value)
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    local(parameter).copy_(own[name])

    def _local_rows(self, parameter: Tensor) -> Tensor:
        """The local_rows of a parameter that are this process's, without copying."""
        parameter = parameter.detach()
        if is_sharded(parameter) or self.world == 1:
            return local(parameter)
        pieces = parameter.chunk(self.world)
        return pieces[self.rank] if self.rank < len(pieces) else parameter[:0]

    def _sharded(self, name: str) -> Tensor:
        from torch.distributed.tensor import DTensor, Shard

        parameter = self.parameters[name]
        mesh = parameter.device_mesh if is_sharded(parameter) else self._mesh  # type: ignore[attr-defined]
        return DTensor.from_local(
            self.local_rows[name], mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=parameter.stride()
        )

    @cached_property
    def _mesh(self) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(next(iter(self.local_rows.values())).device.type, (self.world,))

    def _full(self, name: str) -> Tensor:
        return self.local_rows[name] if self.world == 1 else self._sharded(name).full_tensor()  # type: ignore[attr-defined]
