"""Noise levels and solvers of rollouts are the published ones, at every step of every run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from uniworld.training.editr1.stochastic import RULES, stochastic_solver
from uniworld.uniworld_core.sampling import flow
from uniworld.uniworld_core.sampling.solvers import Solver, solver_named

# Which of ours computes a published solver. Without noise, `flow`, `ddim` and `dpm1` all equal Euler's steps.
OURS = {"flow": "euler", "ddim": "euler", "dpm1": "euler", "dpm2": "dpm2"}


def test_schedules_golden(editr1_golden: Any) -> None:
    for name, settings, tensors in editr1_golden.cases("schedule_"):
        of = settings["scheduler"]
        tokens = (of["base_image_seq_len"], of["max_image_seq_len"])
        shift = flow.Shift(*tokens, of["base_shift"], of["max_shift"], of.get("shift_terminal"))
        assert shift.mu(settings["tokens"]) == pytest.approx(settings["mu"], rel=1e-12), name
        sigmas = flow.schedule(settings["steps"], settings["tokens"], shift)
        torch.testing.assert_close(sigmas, tensors["sigmas"], rtol=1e-6, atol=1e-6, msg=name)


class Toy:
    """The velocity of the golden runs, computed in float32 and returned in the latent's dtype."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.w, self.b, self.noise = (tensors[key] for key in ("w", "b", "noise"))

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        return torch.tanh(x.float() @ self.w + sigma * self.b).to(x.dtype)


@pytest.fixture(scope="module")
def toy(editr1_golden: Any) -> Toy:
    return Toy(editr1_golden.of("toy_velocity"))


def runs(
    golden: Any, deterministic: bool
) -> Iterator[tuple[str, dict[str, Any], dict[str, torch.Tensor], torch.Tensor]]:
    """Yield name, settings, tensors and noise levels of the published runs."""
    for name, settings, tensors in golden.cases("solver_"):
        if settings["deterministic"] == deterministic:
            yield name, settings, tensors, golden.of(settings["schedule"])["sigmas"]


def latents_of(solve: Solver, toy: Toy, sigmas: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the latents before and after every step, (B, steps + 1, N, 4)."""
    seen = [toy.noise.to(dtype)]

    def record(step: flow.Step) -> None:
        seen.append(step.x)

    final = solve(toy, seen[0], sigmas, record)
    assert final.dtype == dtype
    assert final.equal(seen[-1])
    return torch.stack(seen, 1)


def test_solvers_golden(editr1_golden: Any, toy: Toy) -> None:
    ran = set()
    for name, settings, tensors, sigmas in runs(editr1_golden, deterministic=True):
        dtype = tensors["all"].dtype
        found = latents_of(solver_named(OURS[settings["solver"]]), toy, sigmas, dtype)
        if dtype == torch.float32:
            torch.testing.assert_close(found, tensors["all"], rtol=1e-6, atol=1e-6, msg=name)
        else:  # a difference in the last bit of float32 may be rounded to the next number, but only rarely
            assert float((found == tensors["all"]).float().mean()) > 0.95, name
            torch.testing.assert_close(found, tensors["all"], rtol=2**-6, atol=2**-6, msg=name)
        ran.add((settings["solver"], dtype))
    assert {("dpm2", torch.float32), ("dpm2", torch.bfloat16)} <= ran


def test_stochastic_solvers_golden(editr1_golden: Any, toy: Toy) -> None:
    ran = set()
    for name, settings, tensors, sigmas in runs(editr1_golden, deterministic=False):
        generator = torch.Generator("cpu").manual_seed(settings["torch_seed"])
        draw = partial(torch.randn, generator=generator)
        rule, eta = RULES[f"{settings['solver']}_sde"], settings["eta"]
        solve = stochastic_solver(rule, eta, lambda step, x, draw=draw: draw(x.shape))
        found = latents_of(solve, toy, sigmas, torch.float32)
        # "dance" divides by the square of the noise level, so that a last bit of float32 grows to 2e-6 with some numbers.
        torch.testing.assert_close(found, tensors["all"], rtol=1e-5, atol=1e-5, msg=name)
        ran.add(settings["solver"])
        levels = [float(sigma) for sigma in sigmas]
        for step, wanted in enumerate(tensors["log_probs"]):
            if not torch.isfinite(wanted).all():  # the published "ddim" ends without noise
                assert (settings["solver"], levels[step + 1]) == ("ddim", 0.0)
                continue
            x, after = tensors["all"][:, step].double(), tensors["all"][:, step + 1].double()
            one = rule(x, toy(x.float(), levels[step]).double(), levels[step], levels[step + 1], levels[1], eta)
            constant = math.log(one.std) + math.log(2 * math.pi) / 2
            # "dance" leaves out the constant terms; see the facts in `training.editr1.stochastic`.
            log_prob = -((after - one.mean) ** 2) / (2 * one.std**2) - constant * (settings["solver"] != "dance")
            found_log_prob = log_prob.flatten(1).mean(1).float()
            torch.testing.assert_close(found_log_prob, wanted, rtol=1e-5, atol=1e-5, msg=name)
    assert ran == {"flow", "dance", "ddim"}
