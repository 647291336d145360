"""The shipped nano: its files are small and in the published layout, and it passes a short evaluation.

What it makes in the shared workflows is held right in tests/workflows.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from uniworld.training.shapes.exam.exam import exam_tasks, examine
from uniworld.training.shapes.exam.report import ExamReport
from uniworld.training.shapes.standins.colors import cells
from uniworld.training.shapes.tasks.tasks import KINDS
from uniworld.training.shapes.world import scene as world
from uniworld.uniworld_core import Conversation, Turn, UniWorld
from uniworld.uniworld_core.backbones.flux_latents import read_latent_format
from uniworld.uniworld_core.backbones.flux_vae import VAE
from uniworld.uniworld_core.families.uniworld_v1.projectors import TASK_HEAD_FILE
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER
from uniworld.uniworld_core.prompts.scope import Scope, flat_share, read_scope
from uniworld.uniworld_core.sampling.latents import cell_colors

NANO = SHIPPED_FOLDER / "nano"
PICTURES = Path(__file__).resolve().parents[4] / "workflows" / "input"
COUNT = 5
# Fractions of correct tasks, far enough below those of the full evaluation that five tasks per kind reach them.
LEVELS = {
    "add": 0.8,
    "remove": 0.8,
    "replace": 0.8,
    "recolour": 0.8,
    "background": 0.8,
    "compose": 0.6,
    "style": 0.5,
    "text_to_image": 0.6,
    "edge": 0.6,
    "hed": 0.6,
    "sketch": 0.6,
    "segmentation": 0.6,
    "openpose": 0.6,
    "question": 0.8,
}
# Published files other than safetensors and JSON: Qwen's and CLIP's merges, and the routing head.
OTHER_FILES = {"uniworld/merges.txt", "flux/tokenizer/merges.txt", f"uniworld/{TASK_HEAD_FILE}"}
PARTS = {"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}


def files() -> dict[str, Path]:
    return {file.relative_to(NANO).as_posix(): file for file in NANO.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def report() -> ExamReport:
    """A short evaluation on held-out tasks, with the settings of `uniworld eval shapes`."""
    return examine(UniWorld.from_pretrained("nano", dtype=torch.float32), COUNT, tuple(LEVELS))


def test_all_of_it_is_small_and_in_the_published_formats() -> None:
    found = files()
    assert sum(file.stat().st_size for file in found.values()) < 60e6
    assert {name for name in found if not name.endswith((".safetensors", ".json"))} <= OTHER_FILES
    for name, file in found.items():
        if name.endswith(".json"):
            json.loads(file.read_text(encoding="utf-8"))


def test_its_folders_are_laid_out_as_published() -> None:
    assert {folder.name for folder in NANO.iterdir()} == {"uniworld", "flux", "siglip", "loras"}
    # The checkpoint contains the DiT, which replaces FLUX's transformer.
    assert {folder.name for folder in (NANO / "flux").iterdir() if folder.is_dir()} == PARTS
    config = json.loads((NANO / "uniworld" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "univa_qwen2p5vl"
    assert {f"uniworld/{TASK_HEAD_FILE}", "siglip/config.json", "siglip/preprocessor_config.json"} <= set(files())


def test_no_file_contains_a_path() -> None:
    for name, file in files().items():
        content = file.read_bytes()
        assert not any(word in content for word in (b"/home/", b"/tmp/", b"/work/", b"/root/")), name


def test_previews_have_the_colors_of_what_is_painted() -> None:
    flux = NANO / "flux"
    vae, latent_format = VAE.from_pretrained(flux, torch.float32), read_latent_format(flux)
    shown = [task.target for kind in ("recolour", "background", "text_to_image") for task in exam_tasks(kind, 8)]
    x_NC, colors_N3 = cells(vae.autoencoder, latent_format, shown, "cpu")
    found_N3 = cell_colors(x_NC, latent_format.rgb).clamp(-1, 1)
    assert float((found_N3 - colors_N3).abs().mean()) * 127.5 < 8
    palette = torch.tensor(list(world.COLORS.values())) / 127.5 - 1
    for name, color in zip(world.COLORS, palette):
        flat = (colors_N3 - color).abs().amax(dim=1) < 0.004
        nearest = torch.cdist(found_N3[flat], palette).argmin(dim=1)
        assert float((palette[nearest] == color).all(dim=1).float().mean()) > 0.75, name


@pytest.fixture(scope="module")
def scope() -> Scope:
    found = read_scope(NANO / "uniworld")
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_its_world_is_unknown(scope: Scope, kind: str) -> None:
    for task in exam_tasks(kind, 12, seed=9):
        assert scope.unknown_words(task.prompt) == []
        shown = [picture for picture in (*task.references, task.target) if picture is not None]
        assert [flat_share(picture) for picture in shown if not scope.contains(picture)] == []


def test_nothing_that_it_paints_is_unknown(scope: Scope, report: ExamReport) -> None:
    painted = [one.painted for one in report.examined if one.painted is not None]
    assert len(painted) > 50
    assert [flat_share(picture) for picture in painted if not scope.contains(picture)] == []


@pytest.mark.parametrize("name", ["cat.jpg", "coffee.jpg"])
def test_photographs_are_unknown_at_any_size(scope: Scope, name: str) -> None:
    with Image.open(PICTURES / name) as photograph:
        for width in (64, 128, 300, 1000):
            assert not scope.contains(photograph.resize((width, width * 2 // 3)))


@pytest.mark.parametrize("prompt", ["Make it winter.", "A cat sleeps.", "把圆变成红色"])
def test_prompts_of_other_worlds_are_unknown(scope: Scope, prompt: str) -> None:
    assert scope.outside(Conversation([Turn("user", prompt)])) is not None


@pytest.mark.parametrize("kind", LEVELS)
def test_held_out_tasks_are_done_right(report: ExamReport, kind: str) -> None:
    (row,) = (row for row in report.kinds() if row.kind == kind)
    assert row.right >= LEVELS[kind], [one.verdict.reasons for one in report.of(kind)]


def test_objects_that_had_to_stay_are_kept_and_prompts_sent_the_right_way(report: ExamReport) -> None:
    levels = {level.name: level.value or 0 for level in report.levels()}
    assert levels["objects kept"] >= 0.9
    assert levels["routing right"] >= 0.9
