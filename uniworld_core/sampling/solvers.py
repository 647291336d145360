"""The solvers by name. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..errors import UniWorldError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from .flow import Step, Velocity

# The first is the default.
SOLVERS = ("euler", "dpm2")


class Solver(Protocol):
    """Integrates a velocity from sigmas[0] to sigmas[-1]; `flow.euler` describes the arguments."""

    def __call__(
        self,
        velocity: Velocity,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        callback: Callable[[Step], None] | None = None,
    ) -> torch.Tensor: ...


def solver_named(name: str) -> Solver:
    """Return the function of a name in `SOLVERS`.

    Raises:
        UniWorldError: the name is unknown.
    """
    from . import flow

    solvers: dict[str, Solver] = {"euler": flow.euler, "dpm2": flow.dpm2}
    if name not in solvers:
        raise UniWorldError(f"solver is {shown(name)}; it must be one of {', '.join(SOLVERS)}.")
    return solvers[name]
