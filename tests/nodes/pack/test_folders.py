"""The lists of Load UniWorld: checkpoints in models/uniworld and models/diffusers, and the folders that go with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.nodes.pack.folders import checkpoint_folder, companion
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families.table import FAMILIES
from uniworld.uniworld_core.families.uniworld_v1.family import UniWorldV1
from uniworld.uniworld_core.loading.shipped import shipped_names

PIPELINE = "MosaicPipeline"


def checkpoints() -> list[str]:
    return NODE_CLASS_MAPPINGS["UniWorldLoader"].INPUT_TYPES()["required"]["checkpoint"][0]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """models/diffusers with models of a known family, and other folders."""
    monkeypatch.setitem(FAMILIES, PIPELINE, UniWorldV1)
    root = tmp_path / "diffusers"
    for name, kind in {"b": PIPELINE, "a": PIPELINE, "both": PIPELINE, "FLUX.1-dev": "FluxPipeline"}.items():
        (root / name / "vae").mkdir(parents=True)
        (root / name / "model_index.json").write_text(json.dumps({"_class_name": kind}), encoding="utf-8")
        (root / name / "vae" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "uniworld" / "both").mkdir(parents=True)
    (tmp_path / "uniworld" / "both" / "config.json").write_text("{}", encoding="utf-8")
    (root / "empty").mkdir()
    (root / "damaged").mkdir()
    (root / "damaged" / "model_index.json").write_text("{", encoding="utf-8")
    (root / "file").write_text("", encoding="utf-8")
    host.install(host.PlainHost(models=[tmp_path]))
    yield root
    host.install(None)


def test_models_of_known_families_follow_those_of_uniworld(folders: Path) -> None:
    assert checkpoints() == ["both", "a", "b", *shipped_names()]


def test_the_folder_of_uniworld_counts_for_a_name_in_both(folders: Path) -> None:
    assert checkpoint_folder("both") == folders.with_name("uniworld") / "both"
    assert checkpoint_folder("a") == folders / "a"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FLUX.1-dev", r"model_index\.json has _class_name 'FluxPipeline', which is not a known model family"),
        ("damaged", r"model_index\.json"),
        ("empty", r"empty has none of the files kl16\.ckpt, config\.json, model_index\.json, which identify a model"),
        ("file", r"There is no model 'file' in .*uniworld, .*diffusers, .*unipic\. Choose one of both, a, b"),
        ("../uniworld/both", r"There is no model '\.\./uniworld/both'"),
    ],
)
def test_another_folder_is_refused_with_the_reason(folders: Path, name: str, said: str) -> None:
    with pytest.raises(UniWorldError, match=said):
        checkpoint_folder(name)


def test_they_are_no_companions_unless_there_is_no_other(folders: Path) -> None:
    assert companion("diffusers", "auto", "Mine") == "FLUX.1-dev"
    for name in ("FLUX.1-dev", "both", "b"):
        shutil.rmtree(folders / name)
    assert companion("diffusers", "auto", "Mine") == "a"
    assert companion("diffusers", "a", "nano") == "a"
