"""The nodes UniWorld Edit Mask and UniWorld Composite Edit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from uniworld.nodes.pack import masks as mask_nodes

DOCS = Path(__file__).parents[3] / "nodes" / "web" / "docs"
DEFAULTS = {
    name: options[-1].get("default")
    for name, options in mask_nodes.MakeEditMask.INPUT_TYPES()["required"].items()
    if options[0] not in ("IMAGE", "MASK")
}


def edit(before: torch.Tensor, after: torch.Tensor, **settings) -> tuple[torch.Tensor, torch.Tensor, float]:
    return mask_nodes.MakeEditMask().execute(before, after, **{**DEFAULTS, **settings})


def pictures(height: int = 80, width: int = 96, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    before = torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[:, 16:48, 24:64] = 1 - after[:, 16:48, 24:64].round()
    return before, after


@pytest.mark.parametrize("name", mask_nodes.NODES)
def test_every_node_and_input_explains_itself(name: str) -> None:
    node = mask_nodes.NODES[name]
    assert node.DESCRIPTION.endswith(".")
    assert node.CATEGORY.startswith("UniWorld/")
    assert callable(getattr(node, node.FUNCTION))
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for group in node.INPUT_TYPES().values():
        for input_name, (_, options) in group.items():
            assert options["tooltip"].endswith(".")
            assert input_name in page
    for output in node.RETURN_NAMES:
        assert output in page


def test_importing_the_nodes_imports_no_heavy_library() -> None:
    root = Path(mask_nodes.__file__).parents[2]
    program = (
        "import sys, types\n"
        "for name, path in (('uniworld', ''), ('uniworld.nodes', '/nodes')):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        f"    sys.modules[name].__path__ = [{str(root)!r} + path]\n"
        "from uniworld.nodes.pack import masks, perception\n"
        "for node in [*masks.NODES.values(), *perception.NODES.values()]: node.INPUT_TYPES()\n"
        "print(sorted({'kornia', 'transformers', 'diffusers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_mask_covers_the_edit_in_whole_cells() -> None:
    mask, weight, share = edit(*pictures())
    assert mask.shape == (1, 80, 96)
    assert mask.dtype == torch.float32
    assert (mask[0, 16:48, 24:64] == 1).all()
    cells = mask.unfold(1, 8, 8).unfold(2, 8, 8)
    assert torch.equal(cells.amax(dim=(-1, -2)), cells.amin(dim=(-1, -2)))
    assert share == pytest.approx(32 * 40 / (80 * 96))
    assert weight.shape == (1, 80, 96, 3)
    assert weight.max() == 1
    assert (weight[0][mask[0] == 1] == 1).all()
    assert (weight[0][mask[0] == 0] < 1).all()


@pytest.mark.parametrize("function", ["logarithmic", "linear", "exponential_root", "quadratic_root"])
@pytest.mark.parametrize("method", ["code", "paper"])
def test_every_setting_on_offer_works(method: str, function: str) -> None:
    mask, weight, _ = edit(*pictures(), method=method, weight_function=function)
    assert 0 < mask.mean() < 1
    assert 0 < weight.min() < weight.max() == 1


def test_an_unchanged_picture_is_marked_whole() -> None:
    before, _ = pictures()
    mask, weight, share = edit(before, before)
    assert mask.all()
    assert (weight == 1).all()
    assert share == 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 400), (83, 101)])
def test_any_size_gives_a_mask_of_that_size(height: int, width: int) -> None:
    before, after = pictures(height, width)
    mask, weight, _ = edit(before, after)
    assert mask.shape == (1, height, width)
    assert weight.shape == (1, height, width, 3)


def test_a_before_of_another_size_is_fitted() -> None:
    smooth = torch.linspace(0, 0.5, 96)[None, None, :, None].expand(1, 80, 96, 3)
    after = smooth.clone()
    after[:, 16:48, 24:64] = 1
    large = torch.nn.functional.interpolate(smooth.movedim(-1, 1), (160, 192), mode="bicubic").movedim(1, -1)
    mask, _, share = edit(large, after)
    assert mask.shape == (1, 80, 96)
    assert share == pytest.approx(32 * 40 / (80 * 96), rel=0.05)


def test_batches_meet_single_pictures_from_either_side() -> None:
    before, after = pictures()
    three = after.expand(3, -1, -1, -1)
    assert edit(before, three)[0].shape[0] == 3
    assert edit(three, before)[0].shape[0] == 3
    with pytest.raises(ValueError, match="'before' holds 2 pictures and 'after' holds 3"):
        edit(before.expand(2, -1, -1, -1), three)


def test_bad_pictures_get_a_sentence() -> None:
    before, after = pictures()
    with pytest.raises(ValueError, match="'after' has NaN"):
        edit(before, after * float("nan"))
    with pytest.raises(ValueError, match="expected \\(batch, height, width, channels\\)"):
        edit(before, after[0, 0])
    with pytest.raises(ValueError, match="kernel size is 4"):
        edit(before, after, kernel_size=4)


def composite(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor, feather: int = 8) -> torch.Tensor:
    (image,) = mask_nodes.CompositeEdit().execute(before, after, mask, feather)
    return image


@pytest.mark.parametrize("feather", [0, 8])
def test_outside_the_mask_the_composite_is_the_original_bit_for_bit(feather: int) -> None:
    before, after = pictures(83, 101)
    mask = edit(before, after)[0]
    image = composite(before, (after + 0.01).clamp(0, 1), mask, feather)
    assert torch.equal(image[mask == 0], before[mask == 0])
    assert not torch.equal(image, before)


def test_edit_and_mask_of_another_size_are_fitted_to_the_original() -> None:
    before = pictures(83, 101)[0]
    mask = torch.zeros(1, 10, 12)
    mask[:, :, 6:] = 1
    image = composite(before, torch.ones(1, 64, 64, 3), mask, feather=0)
    assert image.shape == before.shape
    assert torch.equal(image[:, :, :50], before[:, :, :50])
    assert image[:, :, 52:].min() > 0.999


def test_rgba_is_composited_on_white_and_the_result_is_rgb() -> None:
    before, after = pictures()
    clear = torch.cat([after, torch.zeros(1, 80, 96, 1)], dim=-1)
    image = composite(before, clear, torch.ones(1, 80, 96), 0)
    assert torch.equal(image, torch.ones(1, 80, 96, 3))


def test_one_mask_and_one_original_serve_a_batch() -> None:
    before, after = pictures()
    image = composite(before, after.expand(3, -1, -1, -1), torch.ones(1, 80, 96), 0)
    assert torch.equal(image, after.expand(3, -1, -1, -1))
