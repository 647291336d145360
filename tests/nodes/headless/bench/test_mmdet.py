"""mmdet's file of Mask2Former in transformers: the numbers that mmdet 2.28.2 itself computes, and files of other forms."""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from uniworld.__main__ import main
from uniworld.nodes.headless.bench.judging import identity
from uniworld.nodes.headless.bench.judging.identity import detector_name, is_published_detector
from uniworld.nodes.headless.bench.judging.mmdet import open_mmdet
from uniworld.uniworld_core.errors import UniWorldError

from .folders import geneval, results

# Names, shapes and outputs of a small network in mmdet 2.28.2 (with mmcv 1.7.2) that has the weights of `weight`.
GOLDEN = json.loads((Path(__file__).parents[3] / "data" / "bench" / "mmdet_mask2former.json").read_text())
NORM = "backbone.stages.0.downsample.norm.weight"
META = {"config": "model = dict()", "CLASSES": ("a", "b"), "PALETTE": [(1, 2, 3), (4, 5, 6)], "score": np.float64(0.4)}


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random numbers that depend on nothing but the name and the shape."""
    made = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    vectors = name.endswith(("table", "embed.weight", "query_feat.weight", "level_encoding.weight"))
    if len(shape) > 1 and not vectors:
        made *= 1.2 / np.sqrt(np.prod(shape[1:]))
    elif not name.endswith("sampling_offsets.bias"):
        made *= 0.3 if len(shape) == 1 or "norm" in name or ".gn." in name else 0.5
        made += ("norm" in name or ".gn." in name) and name.endswith("weight")
    return torch.tensor(made.astype(np.float32))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """The tensors of the small network, by mmdet's names."""
    shapes = {name: tuple(shape) for name, shape in GOLDEN["tensors"].items()}
    return OrderedDict(
        (name, torch.zeros(shape, dtype=torch.int64) if name.endswith("index") else weight(name, shape))
        for name, shape in shapes.items()
    )


def write(file: Path, tensors: dict[str, torch.Tensor], old: bool = False) -> Path:
    """Write a file as mmdet does: published ones have the form from before torch 1.6."""
    content = {"meta": META, "state_dict": tensors, "optimizer": {"lr": 0.1}}
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file


@pytest.fixture(scope="module")
def file(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scipy")
    return write(tmp_path_factory.mktemp("mmdet") / "mask2former.pth", tensors, old=True)


def test_mmdets_network_computes_the_same_in_transformers(file: Path) -> None:
    network = open_mmdet(file).eval()
    picture = np.random.RandomState(GOLDEN["picture_seed"]).standard_normal((1, 3, 64, 96))
    pixels = torch.tensor(picture.astype(np.float32))
    with torch.inference_mode():
        features = network.model.pixel_level_module.encoder(pixels).feature_maps
        found = network(pixel_values=pixels)
    for feature, expected in zip(features, GOLDEN["features"], strict=True):
        assert feature[0, :2, -1, -2:].flatten().tolist() == pytest.approx(expected, abs=1e-3)
    classes, masks = found.class_queries_logits[0], found.masks_queries_logits[0]
    assert classes[:3, :8].flatten().tolist() == pytest.approx(GOLDEN["classes"], abs=2e-3)
    assert masks[:3, 5, ::6].flatten().tolist() == pytest.approx(GOLDEN["masks"], abs=2e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop(NORM), rf"lacks {NORM}\. Pass the file that GenEval uses"),
        (
            lambda tensors: tensors.pop("panoptic_head.query_feat.weight"),
            r"no panoptic_head\.query_feat\.weight with 2 dimensions",
        ),
        (lambda tensors: tensors.update({NORM: torch.zeros(8)}), r"shape \[8\], expected \[16\]"),
        (lambda tensors: tensors.update({"neck.weight": torch.zeros(1)}), r"unexpected neck\.weight"),
        (
            lambda tensors: tensors.update({NORM: torch.zeros(16, dtype=torch.int64)}),
            r"of torch\.int64, expected floating point",
        ),
        (lambda tensors: tensors.update({NORM: "text"}), "is a str, not a tensor"),
        (lambda tensors: tensors.clear(), "not a Mask2Former with Swin"),
    ],
)
def test_another_network_is_named(
    tensors: dict[str, torch.Tensor], tmp_path: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    pytest.importorskip("scipy")
    changed = dict(tensors)
    change(changed)
    with pytest.raises(UniWorldError, match=sentence):
        open_mmdet(write(tmp_path / "other.pth", changed))


class Evil:
    """A pickle that makes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("old", [True, False])
def test_code_in_a_file_is_not_run(tensors: dict[str, torch.Tensor], tmp_path: Path, old: bool) -> None:
    pytest.importorskip("scipy")
    evil = {"meta": {"hook": Evil(tmp_path / "victim")}, "state_dict": tensors}
    torch.save(evil, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(UniWorldError, match=r"evil\.pth was rejected"):
        open_mmdet(tmp_path / "evil.pth")
    assert not (tmp_path / "victim").exists()


def clip(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_the_published_file_is_recognized_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
    file.write_bytes(b"weights")
    name = detector_name(file, clip(tmp_path / "clip"))
    assert not is_published_detector(name)
    assert name.startswith(f"{file.stem}-")
    monkeypatch.setattr(identity, "sha256_file", lambda _: "743b7d99" + "0" * 56)
    name = detector_name(file.rename(tmp_path / "renamed.pth"), tmp_path / "clip")
    assert is_published_detector(name)
    assert name.startswith("mmdet-mask2former-swin-s-743b7d99 with clip-")


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"PK\x03\x04 cut", "was rejected: it is damaged"), (b"", "was rejected")]
)
def test_a_damaged_file_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, sentence: str
) -> None:
    pytest.importorskip("scipy")
    names = geneval(tmp_path / "data")
    pictures, file = results(tmp_path / "pictures", names), tmp_path / "cut.pth"
    file.write_bytes(content)
    command = ["bench", "geneval", "--data", str(tmp_path / "data"), "--pictures", str(pictures)]
    command += ["--out", str(tmp_path / "run"), "--judge", "detector", "--detector", str(file)]
    assert main([*command, "--clip", str(file)]) == 2
    assert "is not a folder. Pass the folder of a CLIP" in capsys.readouterr().err
    assert main([*command, "--clip", str(clip(tmp_path / "clip"))]) == 2
    assert sentence in capsys.readouterr().err
