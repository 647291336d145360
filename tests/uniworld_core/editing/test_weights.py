"""Edit weights: the published numbers, the functions of the paper, and invalid input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from uniworld.uniworld_core.editing import weights

SEED0 = Path(__file__).parents[2] / "data" / "seed0"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(SEED0 / "training.safetensors")


@pytest.mark.parametrize("case", ["large", "small", "whole"])
@pytest.mark.parametrize(("function", "published"), [("logarithmic", "log"), ("exponential_root", "exp")])
def test_weight_equals_the_published_one(
    golden: dict[str, torch.Tensor], case: str, function: str, published: str
) -> None:
    weight = weights.edit_weight(golden[f"mask.{case}.mask"][None] > 0, function)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, golden[f"mask.{case}.{published}.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "weight"),
    [("logarithmic", 5.0), ("linear", 16.0), ("exponential_root", 8.0), ("quadratic_root", 10.0)],
)
def test_weight_functions_are_the_papers(function: str, weight: float) -> None:
    latent = torch.zeros(2, 8, 8, dtype=torch.bool)
    latent[0, 3:5, 3:5] = True
    latent[1] = True
    made = weights.edit_weight(latent, function)
    assert made[0][latent[0]].tolist() == pytest.approx([weight] * 4, abs=1e-6)
    assert (made[0][~latent[0]] == 1).all()
    assert (made[1] == 1).all()


@pytest.mark.parametrize("function", weights.WEIGHT_FUNCTIONS)
def test_weights_stay_finite_for_one_cell_in_a_huge_latent(function: str) -> None:
    latent = torch.zeros(1, 256, 256, dtype=torch.bool)
    latent[0, 7, 7] = True
    weight = weights.edit_weight(latent, function)
    assert torch.isfinite(weight).all()
    assert weight[0, 7, 7] > 1


def test_a_mask_without_cells_weighs_everything_alike() -> None:
    assert (weights.edit_weight(torch.zeros(1, 4, 4, dtype=torch.bool), "linear") == 1).all()


def test_weight_picture_shows_the_heaviest_cell_white() -> None:
    latent = torch.zeros(1, 2, 2, dtype=torch.bool)
    latent[0, 0, 0] = True
    shown = weights.weight_picture(weights.edit_weight(latent, "linear"), 16, 13)
    assert shown.shape == (1, 16, 13, 3)
    assert (shown[0, :8, :8] == 1).all()
    assert (shown[0, 8:] == 0.25).all()


def test_bad_weight_input_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="'cubic' is not known; choose one of logarithmic"):
        weights.edit_weight(torch.ones(1, 4, 4, dtype=torch.bool), "cubic")
    with pytest.raises(ValueError, match=r"pass EditMask\.latent"):
        weights.edit_weight(torch.ones(1, 4, 4))
