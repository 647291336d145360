"""The solvers of rollouts compute what the published ones do, at every step of every deterministic run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from uniworld.uniworld_core.sampling import flow
from uniworld.uniworld_core.sampling.solvers import solver_named

# Which of ours computes a published solver. Without noise, `flow`, `ddim` and `dpm1` all equal Euler's steps.
OURS = {"flow": "euler", "ddim": "euler", "dpm1": "euler", "dpm2": "dpm2"}


def test_solvers_golden(editr1_golden: Any) -> None:
    toy = editr1_golden.of("toy_velocity")

    def velocity(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        return torch.tanh(x @ toy["w"] + sigma * toy["b"])

    def record(seen: list[torch.Tensor], step: flow.Step) -> None:
        seen.append(step.x)

    ran = set()
    for name, settings, tensors in editr1_golden.cases("solver_"):
        # Ours run in float32; the published ones also in bfloat16.
        if not settings["deterministic"] or "float32" not in settings["dtype"]:
            continue
        sigmas = editr1_golden.of(settings["schedule"])["sigmas"]
        seen: list[torch.Tensor] = [toy["noise"]]
        solve = solver_named(OURS[settings["solver"]])
        solve(velocity, toy["noise"], sigmas, partial(record, seen))
        torch.testing.assert_close(torch.stack(seen, 1), tensors["all"], rtol=1e-6, atol=1e-6, msg=name)
        ran.add(settings["solver"])
    assert "dpm2" in ran
