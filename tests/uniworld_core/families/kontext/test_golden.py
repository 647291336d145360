"""The published rollout of FLUX.1 Kontext in Edit-R1, on a tiny transformer.

`UNIWORLD_GOLDEN_EDITR1` names a folder with `pipes.json` and `pipes.safetensors`, which has the transformer's weights. The
numbers that ship, `kontext.safetensors`, are those of the references and the schedules.
"""

from __future__ import annotations

import json
import math
import os
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
from uniworld.uniworld_core.families.kontext.references import encode_references, reference_positions
from uniworld.uniworld_core.sampling.flow import Step, schedule
from uniworld.uniworld_core.sampling.packing import grid_positions, pack, unpack
from uniworld.uniworld_core.sampling.sampler import sample

SHIPPED = Path(__file__).parents[3] / "data" / "editr1" / "kontext.safetensors"
CELLS = 2  # side of a token in latent cells


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


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_latents_of_references(shipped: dict[str, torch.Tensor]) -> None:
    vae = UniWorld.from_pretrained("tiny", dtype=torch.float32).vae
    pictures = [[Image.fromarray(shipped[f"ref{i}"].numpy())] for i in range(2)]
    (latents,) = encode_references(vae, pictures, pictures[0][0].width)
    close(pack(latents, CELLS), shipped["image_latents"])


def test_positions_and_noise_levels(shipped: dict[str, torch.Tensor]) -> None:
    check_positions(shipped)


def check_positions(given: dict[str, torch.Tensor]) -> None:
    """Check positions and noise levels of square pictures with one reference of the same size."""
    tokens, cpu = math.isqrt(given["image_latents"].shape[1]), torch.device("cpu")
    ids = torch.cat([grid_positions(tokens, tokens, cpu), reference_positions([(tokens, tokens)], cpu)])
    assert torch.equal(ids, given["img_ids"])
    for name in ("dpm2", "flow"):
        expected = given[f"{name}_sigmas"]
        close(schedule(len(expected) - 1, tokens**2, FLUX_SHIFT), expected)


@pytest.mark.parametrize(("name", "solver"), [("dpm2", "dpm2"), ("flow", "euler")])
def test_every_latent_of_the_rollout(whole: Rollout, name: str, solver: str) -> None:
    from diffusers import FluxTransformer2DModel

    check_positions(whole.tensors)
    network = FluxTransformer2DModel.from_config(whole.settings["kontext_transformer_config"])
    network.load_state_dict(whole.weights, strict=True)
    dit, given = KontextDiT(network.eval(), FLUX_LATENTS, FLUX_SHIFT), whole.tensors
    side = int(whole.settings["kontext_side"]) // FLUX_LATENTS.factor
    reference, noise = (unpack(given[key], side, side, CELLS) for key in ("image_latents", "noise"))
    condition = Condition(given["prompt_embeds"], given["pooled"], references=(reference,))
    found = [given["noise"]]

    def keep(step: Step) -> None:
        found.append(pack(step.x, CELLS))

    guidance = float(whole.settings["kontext_guidance"])
    painted = sample(dit, condition, noise, given[f"{name}_sigmas"], guidance, callback=keep, solver=solver)
    close(torch.stack(found, dim=1), given[f"{name}_latents"])
    image = UniWorld.from_pretrained("tiny", dtype=torch.float32).decode(FLUX_LATENTS.from_model(painted))
    close(image.permute(0, 3, 1, 2), given[f"{name}_image"])
