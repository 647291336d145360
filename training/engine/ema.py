"""The exponential moving average of the trained parameters, in float32 and sharded over the processes (paper, figure 6).

Each process stores and updates only its own rows of every tensor, about 1/N of them: FSDP2's shard, or the same rows if
every process has the unsharded model. Checkpoints have the same named tensors in both cases.
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
    """Return the decay of update s: min((1 + s) / (10 + s), limit). UniWorld-V1 counts updates from 0, Edit-R1 from 1.

    The ramp lets the average forget the initial weights quickly.
    """
    return min((1 + update) / (10 + update), limit)


class ShardedEMA:
    """The EMA of named parameters, initialized with their current values.

    Args:
        parameters: {name: parameter}, with the same names in every process; unsharded, or sharded by FSDP2 on dimension 0.
        decay: upper limit of the decay.
        rank, world: rank of this process and number of processes.
        first: number of the first update, for `ema_decay`.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], decay: float, rank: int = 0, world: int = 1, first: int = 0
    ) -> None:
        self.parameters, self.decay, self.rank, self.world = dict(parameters), decay, rank, world
        self.first = first
        self.updates = 0
        # Cloned even if the parameter is float32 already, because the average must not share its memory.
        self.local_rows = {name: self._local_rows(value).float().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current values; call it after each optimizer step."""
        decay = ema_decay(self.first + self.updates, self.decay)
        for name, parameter in self.parameters.items():
            self.local_rows[name].lerp_(self._local_rows(parameter).float(), 1.0 - decay)
        self.updates += 1

    def gather(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, unsharded average), one at a time. Collective: every process must iterate to the end."""
        for name in self.local_rows:
            yield name, self._full(name)

    def state(self) -> dict[str, Tensor]:
        """Return {name: average} for torch.distributed.checkpoint: sharded tensors if there are several processes."""
        return {name: self._sharded(name) if self.world > 1 else rows for name, rows in self.local_rows.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the parameters by their averages within the block. Collective: every process enters it.

        The raw values are saved in system RAM meanwhile.
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
        """Return this process's rows of a parameter, without copying."""
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
