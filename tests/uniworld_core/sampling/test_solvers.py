"""The solvers by name, and the multistep solver against one run of the published one.

`tests/training/editr1/test_golden_solvers.py` compares all published runs.
"""

from __future__ import annotations

import math

import pytest
import torch
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.flux_latents import FLUX_SHIFT
from uniworld.uniworld_core.sampling import flow
from uniworld.uniworld_core.sampling.sampler import make_noise, sample
from uniworld.uniworld_core.sampling.solvers import SOLVERS, solver_named

ITEM, TOKENS = (16, 6, 8), 12  # a picture of 48x64

# One published run: solver_flux_6_64_dpm2_det, one of its two items.
# fmt: off
W = torch.tensor([[-0.229428932, -0.0657217503, 0.653335273, 0.293240875], [-1.0338937, 0.414532483, 0.659615159, 0.791949034],
                  [-0.478212744, -0.342232972, 0.484297007, 0.41639027], [-0.0947360545, -0.512950897, -0.238413021, -0.291244179]])
B = torch.tensor([-0.386841625, 0.0904921293, 0.507314503, -0.57636106])
NOISE = torch.tensor([[1.25820673, 1.65996301, -0.44729957, -0.624140382], [1.23284543, 1.02345896, -0.473533124, 1.04312313],
                      [0.206773922, 0.341910571, 0.888908505, -1.95588803]])
PAINTED = torch.tensor([[2.11281157, 0.804031134, -1.41026568, -1.42695034], [2.07506967, 0.866353035, -1.34159565, 0.759405792],
                        [0.482406586, -0.419316351, 0.0340137631, -2.537467]])
# fmt: on


def toy(w: torch.Tensor, b: torch.Tensor) -> flow.Velocity:
    return lambda x, sigma: torch.tanh(x @ w + sigma * b)


def test_golden_of_one_run_of_dpm2() -> None:
    painted = flow.dpm2(toy(W, B), NOISE, flow.schedule(6, 64, FLUX_SHIFT))
    torch.testing.assert_close(painted, PAINTED, rtol=1e-6, atol=1e-6)
    assert float((flow.euler(toy(W, B), NOISE, flow.schedule(6, 64, FLUX_SHIFT)) - PAINTED).abs().max()) > 0.01


def test_solvers_are_found_by_name() -> None:
    assert [solver_named(name) for name in SOLVERS] == [flow.euler, flow.dpm2]
    with pytest.raises(ValueError, match="solver is 'heun'; it must be one of euler, dpm2"):
        solver_named("heun")


@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_dpm2_is_closer_to_a_known_path_than_euler(denoise: float) -> None:
    """Every item has a normal distribution N(2, 0.5) of latents, whose path has a closed form."""
    mean, spread = 2.0, 0.5

    def scale(sigma: float) -> float:
        return math.hypot((1 - sigma) * spread, sigma)

    def velocity(x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        s = float(sigma)
        noisy = x - (1 - s) * mean
        return (s - (1 - s) * spread**2) / scale(s) ** 2 * noisy - mean

    x = torch.tensor([1.5, -0.5], dtype=torch.float64)
    sigmas = flow.schedule(16, 256, FLUX_SHIFT, denoise)
    start = float(sigmas[0])
    exact = mean + (x - (1 - start) * mean) / scale(start) * spread
    euler, dpm2 = (float((solver_named(name)(velocity, x, sigmas) - exact).abs().max()) for name in SOLVERS)
    assert dpm2 < euler / 5
    assert euler < 0.1


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_dpm2_of_up_to_three_steps_from_pure_noise_is_euler(steps: int) -> None:
    sigmas = flow.schedule(steps, 64, FLUX_SHIFT)
    assert torch.equal(flow.dpm2(toy(W, B), NOISE, sigmas), flow.euler(toy(W, B), NOISE, sigmas))


def test_dpm2_checks_schedule_and_values() -> None:
    for levels, message in (([], "hold 0 levels"), ([0.5, 0.7], "must decrease")):
        with pytest.raises(ValueError, match=message):
            flow.dpm2(lambda x, sigma: x, torch.zeros(1), torch.tensor(levels))
    with pytest.raises(ValueError, match="velocity has 1 of 1 values NaN"):
        flow.dpm2(lambda x, sigma: x * float("nan"), torch.ones(1), torch.tensor([0.9, 0.5, 0.0]))


def test_dpm2_paints_a_picture_with_a_mask_from_a_latent(model: UniWorld) -> None:
    condition = model.encode("A red circle.", use_t5=False)
    noise = make_noise([1], ITEM)
    latent = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))
    keep = torch.zeros(1, 1, 6, 8)
    keep[..., :4] = 1
    sigmas = flow.schedule(4, TOKENS, FLUX_SHIFT, denoise=0.6)
    euler, dpm2 = (sample(model.dit, condition, noise, sigmas, 3.5, latent, keep, solver=name) for name in SOLVERS)
    torch.testing.assert_close(dpm2[..., :4], latent[..., :4], rtol=0, atol=1e-5)
    assert not torch.allclose(euler[..., 4:], dpm2[..., 4:], atol=1e-4)
    with pytest.raises(ValueError, match="solver is 'x'"):
        sample(model.dit, condition, noise, sigmas, 3.5, solver="x")


def test_solver_reaches_the_public_class(model: UniWorld) -> None:
    condition = model.encode("A red circle.", use_t5=False)
    size = {"height": 48, "width": 64, "steps": 4}
    plain, euler, dpm2 = (model.sample(condition, **size, **s) for s in ({}, {"solver": "euler"}, {"solver": "dpm2"}))
    assert torch.equal(plain, euler)
    assert not torch.equal(euler, dpm2)
