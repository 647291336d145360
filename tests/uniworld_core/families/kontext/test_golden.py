"""The published rollout of FLUX.1 Kontext in Edit-R1, on a tiny transformer.

`UNIWORLD_GOLDEN_EDITR1` names a folder with `pipes.json` and `pipes.safetensors`, which has the transformer's weights. The
numbers that ship, `kontext.safetensors`, are those of the references and the schedules.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS, FLUX_SHIFT
from uniworld.uniworld_core.families.kontext.painter import KontextDiT
from uniworld.uniworld_core.families.kontext.references import FIRST_AXIS, encode_references, reference_positions
from uniworld.uniworld_core.sampling.flow import schedule
from uniworld.uniworld_core.sampling.packing import grid_positions, pack, unpack
from uniworld.uniworld_core.sampling.sampler import sample

SHIPPED = Path(__file__).parents[3] / "data" / "editr1" / "kontext.safetensors"
CELLS = 2  # side of a token in latent cells
# Which of ours computes a published solver.
SOLVERS = {"flow": "euler", "ddim": "euler", "dpm1": "euler", "dpm2": "dpm2"}


@dataclass(frozen=True)
class Rollout:
    """The settings, tensors and weights of the published rollout."""

    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]


def read(file: Path, settings: dict[str, Any]) -> Rollout:
    tensors = load_file(file)
    parts = [
        {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
        for start in ("kontext/", "kontext_transformer/")
    ]
    return Rollout(settings, *parts)


@pytest.fixture(scope="module")
def shipped() -> dict[str, torch.Tensor]:
    return read(SHIPPED, {}).tensors


@pytest.fixture(scope="module")
def whole() -> Rollout:
    folder = os.environ.get("UNIWORLD_GOLDEN_EDITR1")
    if not folder:
        pytest.skip("UNIWORLD_GOLDEN_EDITR1 names no folder; the weights of this test do not ship")
    settings = json.loads((Path(folder) / "pipes.json").read_text(encoding="utf-8"))
    return read(Path(folder) / "pipes.safetensors", settings)


@pytest.fixture(scope="module")
def tiny() -> UniWorld:
    return UniWorld.from_pretrained("tiny", dtype=torch.float32)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def latents_of_references(model: UniWorld, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the packed latents of the references, encoded by the VAE of a model."""
    pictures = [[Image.fromarray(given[f"ref{i}"].numpy())] for i in range(len(given["image_latents"]))]
    (latents,) = encode_references(model.vae, pictures, pictures[0][0].width)
    return pack(latents, CELLS)


def test_the_latents_of_references(shipped: dict[str, torch.Tensor], tiny: UniWorld) -> None:
    close(latents_of_references(tiny, shipped), shipped["image_latents"])


def test_positions_and_noise_levels(shipped: dict[str, torch.Tensor]) -> None:
    check_positions(shipped)
    check_noise_levels(shipped, ("dpm2", "flow"))


def grids(given: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Return rows and columns of the tokens of the painted picture and of its reference, from their published positions."""
    ids = given["img_ids"]
    parts = (ids[ids[:, 0] == first] for first in (0, FIRST_AXIS))
    return [(int(part[:, 1].max()) + 1, int(part[:, 2].max()) + 1) for part in parts]


def check_positions(given: dict[str, torch.Tensor]) -> None:
    (painted, reference), cpu = grids(given), torch.device("cpu")
    ids = torch.cat([grid_positions(*painted, cpu), reference_positions([reference], cpu)])
    assert torch.equal(ids, given["img_ids"])


def check_noise_levels(given: dict[str, torch.Tensor], names: Iterable[str]) -> None:
    for name in names:
        expected = given[f"{name}_sigmas"]
        close(schedule(len(expected) - 1, math.prod(grids(given)[0]), FLUX_SHIFT), expected)


def test_every_latent_of_the_rollouts(whole: Rollout, tiny: UniWorld) -> None:
    from diffusers import FluxTransformer2DModel

    given = whole.tensors
    names = [key.removesuffix("_latents") for key in given if f"{key.removesuffix('_latents')}_sigmas" in given]
    assert names
    check_positions(given)
    check_noise_levels(given, names)
    network = FluxTransformer2DModel.from_config(whole.settings["kontext_transformer_config"])
    network.load_state_dict(whole.weights, strict=True)
    dit = KontextDiT(network.eval(), FLUX_LATENTS, FLUX_SHIFT)
    noise, reference = (
        unpack(given[key], CELLS * rows, CELLS * columns, CELLS)
        for key, (rows, columns) in zip(("noise", "image_latents"), grids(given), strict=True)
    )
    condition = Condition(given["prompt_embeds"], given["pooled"], references=(reference,))
    guidance = float(whole.settings["kontext_guidance"])
    # The folder has the latents of the references, but no weights of the VAE that encoded them.
    encoded, expected = latents_of_references(tiny, given), given["image_latents"]
    same_vae = encoded.shape == expected.shape and torch.allclose(encoded, expected, rtol=1e-5, atol=1e-5)
    for name in names:
        found = [given["noise"]]
        painted = sample(
            dit,
            condition,
            noise,
            given[f"{name}_sigmas"],
            guidance,
            callback=lambda step, found=found: found.append(pack(step.x, CELLS)),
            solver=SOLVERS[name],
        )
        close(torch.stack(found, dim=1), given[f"{name}_latents"])
        if same_vae:
            image = tiny.decode(FLUX_LATENTS.from_model(painted))
            close(image.permute(0, 3, 1, 2), given[f"{name}_image"])
