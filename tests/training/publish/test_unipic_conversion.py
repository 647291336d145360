"""`uniworld convert` of a UniPic: safetensors without SigLIP2, in any storage type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from uniworld.__main__ import main
from uniworld.training.publish.tensor_file import TensorFile
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.families.unipic.checkpoint import UniPicParts


@pytest.fixture(scope="module")
def painted(unipic: Path) -> torch.Tensor:
    return paint(unipic)


def paint(folder: Path) -> torch.Tensor:
    model = UniWorld.from_pretrained(folder, dtype=torch.float32)
    return model.sample(model.encode("a red ball"), 64, 64, steps=1)


@pytest.mark.parametrize(("storage", "share"), [("float32", 0.0), ("bfloat16", 0.05), ("int8", 0.1)])
def test_a_converted_folder_paints_the_same(
    storage: str, share: float, unipic: Path, painted: torch.Tensor, tmp_path: Path, capsys: Any
) -> None:
    target = tmp_path / "converted"
    assert main(["convert", str(unipic), str(target), "--storage", storage]) == 0, capsys.readouterr().err
    assert json.loads((target / "config.json").read_text())["mar_heads"] == 16
    (file,) = target.glob("model-*.safetensors")
    names = set(load_file(file))
    assert not any(name.startswith(("siglip2", "mar.class_emb", "llm.lm_head")) for name in names)
    assert ("proj_in.0.weight_scale" in names, "mar.encoder_blocks.0.attn.qkv.weight_scale" in names) == (
        False,
        storage == "int8",
    )
    assert not list(target.rglob("*.bin"))
    found = paint(target)
    assert float((found - painted).std()) <= share * float(painted.std())


def test_a_conversion_interrupted_at_its_last_step_resumes(
    unipic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    check = UniPicParts.check

    def stop(parts: UniPicParts) -> None:
        if parts.folder != unipic:
            raise KeyboardInterrupt
        check(parts)

    command = ["convert", str(unipic), str(tmp_path / "converted")]
    with monkeypatch.context() as patch:
        patch.setattr(UniPicParts, "check", stop)
        assert main(command) == 1
    monkeypatch.setattr(TensorFile, "write", lambda *_: pytest.fail("nothing is written again"))
    assert main(command) == 0, capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "comfy"), "use --to uniworld"),
        (("--flux", "x"), "--flux does not apply to a UniPic"),
        (("--seed", "3"), "--seed does not apply to a UniPic"),
    ],
)
def test_what_does_not_apply_is_an_error(
    options: tuple[str, ...], said: str, unipic: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["convert", str(unipic), str(tmp_path / "converted"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "converted").exists()


def test_a_target_inside_the_source_is_an_error(unipic_copy: Path, capsys: Any) -> None:
    assert main(["convert", str(unipic_copy), str(unipic_copy / "converted")]) == 2
    assert "is inside the UniPic folder" in capsys.readouterr().err


def test_an_incomplete_download_is_named(unipic_copy: Path, capsys: Any) -> None:
    (unipic_copy / "kl16.ckpt").unlink()
    assert main(["convert", str(unipic_copy), str(unipic_copy.parent / "converted")]) == 2
    assert "has none of the files kl16.ckpt, config.json, model_index.json" in capsys.readouterr().err
