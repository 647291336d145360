"""A painter of another family than the shipped one: latents of videos, scales of each channel, a terminal noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.images.sizes import Size
from uniworld.uniworld_core.sampling import flow
from uniworld.uniworld_core.sampling.latents import LatentFormat, preview
from uniworld.uniworld_core.sampling.packing import grid_positions
from uniworld.uniworld_core.sampling.sampler import make_noise, paint

# As Qwen-Image has it, with fewer channels: AutoencoderKLQwenImage's latents_mean and 1 / latents_std, and its scheduler's
# shift_terminal.
MEAN, SCALE = (0.5, -0.25, 2.0), (2.0, 0.5, 1.25)
LATENTS = LatentFormat(
    "toy", channels=3, factor=8, pack=2, shift=MEAN, scale=SCALE, rgb=(tuple(np.eye(4, 3).tolist()),), ndim=5
)
SHIFT = flow.Shift(base_tokens=256, max_tokens=8192, base_mu=0.5, max_mu=0.9, terminal=0.02)
SIZE = Size(32, 48)
SHAPE = (2, 3, 1, 4, 6)
CPU = torch.device("cpu")


@dataclass
class Toy:
    """Guides by a negative, as Qwen-Image does, and looks at reference latents, as FLUX-Kontext does.

    Its velocity is straight: from any noise to the latent that the condition names.
    """

    latent_format: LatentFormat = LATENTS
    shift: flow.Shift = SHIFT
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    prepared: list[tuple[int, ...]] = field(default_factory=list)

    def check(self, condition: Condition, shape: Sequence[int]) -> None:
        self.latent_format.size(shape)
        if condition.negative is None:
            raise UniWorldError("The condition has no negative.")

    def velocity_for(self, condition: Condition, guidance: float, shape: Sequence[int]) -> flow.Velocity:
        self.prepared.append(tuple(shape))
        condition = condition.to(self.device, self.dtype).repeat(shape[0])
        assert condition.negative is not None
        toward, away = (c.tokens.mean(dim=(1, 2)).reshape(-1, 1, 1, 1, 1) for c in (condition, condition.negative))
        seen = sum(latent.mean(dim=(1, 2, 3)).reshape(-1, 1, 1, 1, 1) for latent in condition.references)
        target = away + guidance * (toward - away) + seen
        return lambda x, sigma: (x - target) / sigma


def condition_of(value: float, references: int = 0) -> Condition:
    negative = Condition(torch.zeros(1, 2, 4))
    latents = tuple(torch.full((1, 3, 2, 2), 10.0) for _ in range(references))
    return Condition(torch.full((1, 5, 4), value), references=latents, negative=negative)


def test_another_family_paints_with_the_same_function() -> None:
    toy, seen = Toy(), []
    z = paint(toy, condition_of(1.5, references=1), SIZE, [3, 4], 5, 2.0, callback=seen.append)
    assert z.shape == SHAPE
    assert toy.prepared == [SHAPE]  # once a run, not once a step
    # The normalized latent is 0 + 2 * (1.5 - 0) + 10; it is unscaled channel by channel.
    for channel, (mean, scale) in enumerate(zip(MEAN, SCALE)):
        torch.testing.assert_close(z[:, channel], torch.full_like(z[:, channel], 13 / scale + mean))
    sigmas = [step.sigma for step in seen]
    assert sigmas == flow.schedule(5, LATENTS.token_count(SHAPE), SHIFT)[:-1].tolist()
    start = make_noise([3, 4], SHAPE[1:])
    torch.testing.assert_close(seen[0].x, start + (sigmas[1] - 1) * (start - 13))


def test_what_is_kept_is_kept_in_latents_of_videos() -> None:
    latent = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    keep = torch.zeros(2, 1, 4, 6)
    keep[..., 3:] = 1
    z = paint(Toy(), condition_of(0.0), SIZE, [0, 1], 4, 1.0, denoise=0.5, latent=latent, keep_B1hw=keep)
    torch.testing.assert_close(z[..., 3:], latent[..., 3:], rtol=0, atol=1e-5)
    assert float((z[..., :3] - latent[..., :3]).abs().mean()) > 0.1


def test_scales_of_each_channel_undo_each_other() -> None:
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x = LATENTS.to_model(z)
    assert torch.equal(x[:, 2], (z[:, 2] - MEAN[2]) * SCALE[2])
    torch.testing.assert_close(LATENTS.from_model(x), z)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 2, 4, 6), (2, 4, 1, 4, 6), (2, 3, 1, 4, 5), (0, 3, 1, 4, 6)])
def test_errors_for_invalid_latents_show_the_expected_shape(shape: tuple[int, ...]) -> None:
    assert not LATENTS.fits(shape)
    with pytest.raises(
        UniWorldError, match=r"the model takes \(batch, 3, 1, height/8, width/8\), for .* multiples of 16"
    ):
        LATENTS.size(shape)


def test_preview_of_latents_of_videos() -> None:
    white = preview(torch.ones(3, 1, 4, 6), LATENTS.rgb, side=6)
    assert white.size == (6, 4)
    assert white.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("steps", [2, 6, 28])
@pytest.mark.parametrize("tokens", [64, 1024, 9000])
def test_terminal_level_is_that_of_the_published_scheduler(steps: int, tokens: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=SHIFT.mu(tokens))
    levels = flow.schedule(steps, tokens, SHIFT)
    torch.testing.assert_close(levels, scheduler.sigmas, rtol=0, atol=1e-6)
    assert math.isclose(float(levels[-2]), 0.02, abs_tol=1e-6)
    assert all(a > b for a, b in pairwise(levels.tolist()))


def test_one_step_starts_from_pure_noise_for_every_terminal_level() -> None:
    assert flow.schedule(1, 1024, SHIFT).tolist() == [1.0, 0.0]


# --- the condition ----------------------------------------------------------------------------------------------------


def test_condition_goes_on_and_is_repeated_whole() -> None:
    condition = condition_of(1.0, references=2).to(CPU, torch.float64).repeat(3)
    assert condition.negative is not None
    assert len(condition) == len(condition.negative) == 3
    assert [latent.shape for latent in condition.references] == [(3, 3, 2, 2)] * 2
    tensors = (condition.tokens, condition.negative.tokens, *condition.references)
    assert {tensor.dtype for tensor in tensors} == {torch.float64}


@pytest.mark.parametrize(
    "extra", [{"references": (torch.zeros(1, 16, 2, 2),)}, {"negative": Condition(torch.zeros(1, 1, 1))}]
)
def test_the_dit_refuses_what_it_was_not_trained_with(model: UniWorld, extra: dict[str, Any]) -> None:
    plain = model.encode("A red circle.", use_t5=False)
    with pytest.raises(UniWorldError, match="reference latents or a negative prompt"):
        model.sample(Condition(plain.tokens, plain.pooled, **extra), 16, 16, steps=1)


def test_the_dit_needs_a_pooled_prompt(model: UniWorld) -> None:
    plain = model.encode("A red circle.", use_t5=False)
    with pytest.raises(UniWorldError, match="conditioning has no pooled prompt: encode"):
        model.sample(Condition(plain.tokens), 16, 16, steps=1)


def test_positions_of_references_differ_in_the_first_place() -> None:
    painted, reference = (grid_positions(2, 3, CPU, first) for first in (0, 1))
    assert painted.tolist() == [[0, row, column] for row in range(2) for column in range(3)]
    assert torch.equal(reference - painted, torch.tensor([1.0, 0, 0]).expand(6, 3))


def test_the_shape_of_latents_is_that_of_their_pictures() -> None:
    for latents, shape in ((LATENTS, SHAPE), (FLUX_LATENTS, (2, 16, 4, 6))):
        assert latents.shape(2, SIZE) == shape
        assert latents.size(shape) == SIZE
        assert latents.token_count(shape) == 6
