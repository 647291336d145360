"""Noise levels, Euler's steps, and the sampler over them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS, FLUX_SHIFT
from uniworld.uniworld_core.images.sizes import MAX_PIXELS, Size, check_size
from uniworld.uniworld_core.sampling import flow
from uniworld.uniworld_core.sampling.packing import pack, unpack
from uniworld.uniworld_core.sampling.sampler import make_noise, paint, sample

SIZE = {"height": 48, "width": 64}
ITEM = (16, 6, 8)  # its latent
TOKENS = 12


@pytest.fixture(scope="module")
def condition(model: UniWorld) -> Condition:
    return model.encode("A red circle.", use_t5=False)


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_shift_runs_from_a_half_at_256_tokens_to_its_largest_at_4096() -> None:
    assert FLUX_SHIFT.mu(256) == 0.5
    assert FLUX_SHIFT.mu(4096) == 1.15
    assert FLUX_SHIFT.mu(FLUX_LATENTS.token_count(FLUX_LATENTS.shape(1, Size(1024, 1024)))) == 1.15
    assert FLUX_SHIFT.mu((256 + 4096) // 2) == pytest.approx((0.5 + 1.15) / 2)


def test_a_shift_of_zero_changes_nothing() -> None:
    levels = torch.linspace(0, 1, 11)
    torch.testing.assert_close(flow.exponential_shift(levels, 0.0), levels)
    assert flow.exponential_shift(levels, 1.0)[[0, -1]].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("steps", [1, 5, 28])
@pytest.mark.parametrize("tokens", [36, 256, 1620, 4096])
def test_schedule_is_that_of_the_published_scheduler(steps: int, tokens: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=FLUX_SHIFT.mu(tokens))
    torch.testing.assert_close(flow.schedule(steps, tokens, FLUX_SHIFT), scheduler.sigmas, rtol=0, atol=1e-6)


@given(steps=st.integers(1, 200), tokens=st.integers(1, 65536), denoise=st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_every_schedule_falls_to_zero(steps: int, tokens: int, denoise: float) -> None:
    levels = flow.schedule(steps, tokens, FLUX_SHIFT, denoise)
    assert levels.shape == (steps + 1,)
    assert levels.dtype == torch.float32
    assert levels[-1] == 0
    assert flow.check_sigmas(levels)[0] <= 1
    if denoise == 1.0:
        assert levels[0] == 1


def test_less_denoise_takes_the_end_of_a_finer_schedule() -> None:
    assert torch.equal(flow.schedule(5, 256, FLUX_SHIFT, denoise=0.5), flow.schedule(10, 256, FLUX_SHIFT)[-6:])


@pytest.mark.parametrize(("steps", "denoise"), [(0, 1.0), (-3, 1.0), (4, 0.0), (4, 1.01), (4, float("nan"))])
def test_schedule_of_no_steps_or_impossible_denoise_is_an_error(steps: int, denoise: float) -> None:
    with pytest.raises(ValueError, match=r"(steps|denoise) is .*; it must be"):
        flow.schedule(steps, 256, FLUX_SHIFT, denoise)


# --- Euler's steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_is_exact_on_a_straight_path(steps: int) -> None:
    latent, noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), torch.ones(2, 3)
    arrived = flow.euler(lambda x, sigma: noise - latent, noise, flow.schedule(steps, 256, FLUX_SHIFT))
    torch.testing.assert_close(arrived, latent, rtol=0, atol=1e-6)


def test_noising_goes_from_the_latent_to_the_noise() -> None:
    latent, noise = torch.zeros(3), torch.ones(3)
    assert torch.equal(flow.add_noise(latent, noise, 0.0), latent)
    assert torch.equal(flow.add_noise(latent, noise, 1.0), noise)
    assert torch.equal(flow.add_noise(latent, noise, 0.25), torch.full((3,), 0.25))


def test_callback_sees_each_step_in_order() -> None:
    latent, noise, seen = torch.full((2,), 3.0), torch.zeros(2), []
    sigmas = flow.schedule(4, 256, FLUX_SHIFT)
    arrived = flow.euler(lambda x, sigma: noise - latent, noise, sigmas, seen.append)
    assert [(step.index, step.total) for step in seen] == [(i, 4) for i in range(4)]
    assert [step.sigma for step in seen] == sigmas[:-1].tolist()
    assert torch.equal(seen[-1].x, arrived)
    for step in seen:
        torch.testing.assert_close(step.denoised, latent)


def test_what_the_callback_raises_ends_the_run() -> None:
    calls = []

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        calls.append(sigma)
        return torch.zeros_like(x)

    def stop(step: flow.Step) -> None:
        if step.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow.euler(velocity, torch.zeros(1), flow.schedule(9, 256, FLUX_SHIFT), stop)
    assert len(calls) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 2])
def test_velocity_that_is_not_finite_is_reported_with_step_and_sigma(bad: float, at: int) -> None:
    sigmas = flow.schedule(4, 256, FLUX_SHIFT)

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.where(torch.arange(3) == 1, bad if sigma == float(sigmas[at]) else 0.0, 0.0)

    with pytest.raises(ValueError, match="velocity has 1 of 3 values NaN or infinite") as error:
        flow.euler(velocity, torch.zeros(3), sigmas)
    assert f"step {at + 1} of 4 (sigma {float(sigmas[at]):.4f})" in str(error.value)


def test_starting_latent_that_is_not_finite_is_reported() -> None:
    with pytest.raises(ValueError, match=r"starting latent has 1 of 2 values NaN .* step 1 of 2 \(sigma 1.0000\)"):
        flow.euler(lambda x, sigma: x, torch.tensor([float("nan"), 0.0]), flow.schedule(2, 256, FLUX_SHIFT))


@pytest.mark.parametrize(
    "levels",
    [[0.5, 0.7, 0.0], [1.0, 1.0, 0.0], [1.2, 0.5, 0.0], [1.0, 0.5, -0.1], [1.0, float("nan"), 0.0], [14.6, 7.0, 0.0]],
    ids=["rises", "stays", "above 1", "below 0", "nan", "of another model"],
)
def test_sigmas_that_do_not_fall_within_one_and_nothing_are_an_error(levels: list[float]) -> None:
    with pytest.raises(ValueError, match="must decrease"):
        flow.euler(lambda x, sigma: x, torch.zeros(1), torch.tensor(levels))


@pytest.mark.parametrize("levels", [[], [1.0]])
def test_sigmas_of_no_step_are_an_error(levels: list[float]) -> None:
    with pytest.raises(ValueError, match=f"hold {len(levels)} levels"):
        flow.euler(lambda x, sigma: x, torch.zeros(1), torch.tensor(levels))


# --- packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(2, 2), (4, 10), (12, 6)])
def test_packing_and_unpacking_undo_each_other(h: int, w: int) -> None:
    latent = torch.arange(2.0 * 16 * h * w).reshape(2, 16, h, w)
    packed = pack(latent, 2)
    assert packed.shape == (2, FLUX_LATENTS.token_count(latent.shape), 64)
    assert torch.equal(unpack(packed, h, w, 2), latent)


def test_packed_token_holds_the_cells_of_its_place_channel_first() -> None:
    latent = torch.arange(16.0 * 4 * 4).reshape(1, 16, 4, 4)
    assert torch.equal(pack(latent, 2)[0, 1], latent[0, :, 0:2, 2:4].flatten())
    assert torch.equal(pack(latent, 2)[0, 2], latent[0, :, 2:4, 0:2].flatten())


# --- the sampler ------------------------------------------------------------------------------------------------------


def test_sampler_follows_its_own_velocity(model: UniWorld, condition: Condition) -> None:
    noise, sigmas = make_noise([1], ITEM), flow.schedule(3, TOKENS, FLUX_SHIFT)
    x = noise
    with torch.inference_mode():
        for sigma, after in pairwise(sigmas.tolist()):
            x = x + (after - sigma) * model.dit.velocity(x, sigma, condition, 2.0)
    torch.testing.assert_close(sample(model.dit, condition, noise, sigmas, 2.0), x, rtol=0, atol=1e-6)


def test_callback_sees_latents_and_the_last_one_is_the_result(model: UniWorld, condition: Condition) -> None:
    seen: list[flow.Step] = []
    z = model.sample(condition, **SIZE, steps=3, callback=seen.append)
    assert [(step.index, step.total) for step in seen] == [(0, 3), (1, 3), (2, 3)]
    assert all(step.x.shape == step.denoised.shape == (1, 16, 6, 8) for step in seen)
    assert torch.equal(model.latent_format.from_model(seen[-1].x), z)


def test_guidance_matters(model: UniWorld, condition: Condition) -> None:
    low, high = (model.sample(condition, **SIZE, steps=1, guidance=guidance) for guidance in (1.0, 10.0))
    assert not torch.equal(low, high)


def test_sigmas_given_take_the_place_of_steps(model: UniWorld, condition: Condition) -> None:
    sigmas = flow.schedule(2, TOKENS, FLUX_SHIFT)
    assert torch.equal(
        model.sample(condition, **SIZE, steps=28, sigmas=sigmas), model.sample(condition, **SIZE, steps=2)
    )


@pytest.mark.parametrize("where", ["noise", "latent"])
def test_nan_at_the_start_is_reported_at_the_first_step(model: UniWorld, condition: Condition, where: str) -> None:
    noise = make_noise([1], ITEM)
    given_tensors = {"noise": noise, "latent": torch.zeros_like(noise)}
    given_tensors[where] = given_tensors[where].clone()
    given_tensors[where][0, 3, 2, 1] = float("nan")
    sigmas = flow.schedule(4, TOKENS, FLUX_SHIFT, denoise=0.5)
    with pytest.raises(ValueError, match=rf"starting latent has 1 of .* step 1 of 4 \(sigma {float(sigmas[0]):.4f}\)"):
        sample(model.dit, condition, given_tensors["noise"], sigmas, 3.5, latent=given_tensors["latent"])


def test_nan_in_the_condition_is_reported_at_the_first_step(model: UniWorld, condition: Condition) -> None:
    broken = Condition(condition.tokens.clone().index_fill_(1, torch.tensor([1]), float("nan")), condition.pooled)
    with pytest.raises(ValueError, match=r"velocity has .* step 1 of 2"):
        model.sample(broken, **SIZE, steps=2)


def test_what_is_kept_comes_out_as_it_went_in(model: UniWorld, condition: Condition) -> None:
    noise = make_noise([1], ITEM)
    latent = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))
    keep = torch.zeros(1, 1, 6, 8)
    keep[..., :4] = 1
    sigmas = flow.schedule(4, TOKENS, FLUX_SHIFT)
    painted = sample(model.dit, condition, noise, sigmas, 3.5, latent=latent, keep_B1hw=keep)
    torch.testing.assert_close(painted[..., :4], latent[..., :4], rtol=0, atol=1e-5)
    assert float((painted[..., 4:] - latent[..., 4:]).abs().mean()) > 0.1


def test_painting_from_a_latent_starts_on_the_path_to_it(
    model: UniWorld, condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, latent, seen = make_noise([1], ITEM), torch.full((1, 16, 6, 8), 0.5), []
    sigmas = flow.schedule(2, TOKENS, FLUX_SHIFT, denoise=0.25)

    def velocity(x: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    monkeypatch.setattr(model.dit, "packed_velocity", velocity)
    sample(model.dit, condition, noise, sigmas, 3.5, latent=latent)
    torch.testing.assert_close(seen[0], pack(flow.add_noise(latent, noise, sigmas[0]), 2))


@pytest.mark.parametrize(("tokens", "pooled", "named"), [(7, None, "text of"), (None, 9, "pooled prompt of")])
def test_condition_of_another_width_is_an_error(
    model: UniWorld, condition: Condition, tokens: int | None, pooled: int | None, named: str
) -> None:
    foreign = Condition(condition.tokens[..., :tokens], condition.pooled[..., :pooled])
    with pytest.raises(ValueError, match=rf"The {named} the conditioning is \d+ wide, and the DiT takes \d+"):
        model.sample(foreign, **SIZE, steps=1)


def test_latent_of_another_shape_than_the_noise_is_an_error(model: UniWorld, condition: Condition) -> None:
    with pytest.raises(ValueError, match="both must have the same shape"):
        sample(
            model.dit,
            condition,
            make_noise([1], ITEM),
            flow.schedule(1, 12, FLUX_SHIFT),
            3.5,
            latent=torch.zeros(1, 16, 6, 6),
        )


@pytest.mark.parametrize("shape", [(1, 16, 7, 8), (1, 16, 6, 9), (1, 4, 6, 8), (16, 6, 8)])
def test_noise_that_the_dit_cannot_take_is_an_error(
    model: UniWorld, condition: Condition, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"the DiT takes \(batch, 16"):
        sample(model.dit, condition, torch.zeros(shape), flow.schedule(1, 12, FLUX_SHIFT), 3.5)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "named"), [(100, 64, "height is 100"), (64, 8, "width is 8")])
@pytest.mark.parametrize("sign", [1, -1, 0])
def test_sides_must_be_multiples_of_16(
    model: UniWorld, condition: Condition, height: int, width: int, named: str, sign: int
) -> None:
    if sign != 1:  # no size at all
        height, width, named = sign * 64, 64, f"height is {sign * 64}"
    with pytest.raises(ValueError, match=f"{named}; it must be a positive multiple of 16, such as"):
        model.sample(condition, height=height, width=width, steps=1)


@pytest.mark.parametrize(("height", "width"), [(4096, 4112), (16, 2**30), (10**9 * 16, 10**9 * 16)])
def test_absurdly_large_sizes_are_an_error_before_anything_is_made(
    model: UniWorld, condition: Condition, height: int, width: int
) -> None:
    with pytest.raises(ValueError, match=f"more than {MAX_PIXELS}"):
        model.sample(condition, height=height, width=width, steps=1)
    with pytest.raises(ValueError, match="paint a smaller picture"):
        paint(model.dit, condition, Size(height, width), [1], 1, 1.0)


def test_largest_and_smallest_sizes_are_allowed() -> None:
    check_size(4096, 4096, 16)
    check_size(16, 16, 16)


def test_smallest_picture_is_painted(model: UniWorld, condition: Condition) -> None:
    assert model.decode(model.sample(condition, height=16, width=16, steps=1)).shape == (1, 16, 16, 3)
