"""Imports the checkout as `uniworld`, whatever its folder is called and whether or not it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Test processes that share the cores use one thread each: more threads than cores wait for one another and are slower.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Shells start background jobs with SIGINT ignored, and children inherit that. Tests of Ctrl-C must work there too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from uniworld.uniworld_core import UniWorld

ROOT = Path(__file__).resolve().parents[1]


def import_checkout() -> None:
    """Register the repository root as the package `uniworld`, unless `import uniworld` already finds it."""
    spec = importlib.util.find_spec("uniworld")
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == ROOT / "__init__.py":
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "uniworld"]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "uniworld", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["uniworld"] = module
    spec.loader.exec_module(module)


import_checkout()


# The slowest test files with their approximate seconds on one core, without bfloat16 instructions. They run first:
# otherwise one process would run them at the end while the others are idle.
SECONDS = {
    "browser/test_content.py": 65,
    "training/shapes/nano/test_nano.py": 60,
    "training/shapes/claims/test_claims.py": 55,
    "browser/test_editor.py": 50,
    "benchmarks/test_benchmarks.py": 50,
    "nodes/headless/batch/test_batch.py": 50,
    "training/shapes/nano/test_nano_shipped.py": 40,
    "training/run/test_training_loop.py": 40,
    "training/cli/test_cli.py": 40,
    "browser/test_firefox.py": 30,
    "training/editr1/test_kill.py": 30,
    "training/run/test_training_parallel.py": 25,
    "training/shapes/judge/test_oracle.py": 25,
    "uniworld_core/loading/test_quantized.py": 25,
    "workflows/test_nano_is_right.py": 25,
    "nodes/headless/remote/test_real_servers.py": 20,
    "test_examples.py": 20,
    "browser/test_conversion.py": 15,
    "training/editr1/test_run.py": 15,
    "uniworld_core/loading/test_hostile_folders.py": 15,
    "uniworld_core/loading/test_loading.py": 15,
    "nodes/headless/serve/queue/test_kill.py": 10,
    "training/run/test_training_resume.py": 10,
    "nodes/headless/test_cli.py": 10,
    "test_streams.py": 10,
    "workflows/test_families.py": 10,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the slowest files first; the order is otherwise kept. Leave out acceptance tests unless `-m` names them."""
    if "acceptance" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("acceptance")])
        items[:] = [item for item in items if not item.get_closest_marker("acceptance")]
    seconds = {Path(__file__).parent / name: time for name, time in SECONDS.items()}
    if missing := [str(file) for file in seconds if not file.is_file()]:
        raise pytest.UsageError(f"SECONDS names files that do not exist: {', '.join(missing)}.")
    items.sort(key=lambda item: -seconds.get(item.path, 0))


# --- the shipped tiny model and the published implementation's outputs on it ------------------------------------------

DATA = ROOT / "tests" / "data"
TINY = ROOT / "uniworld_core" / "shipped" / "tiny"


@dataclass(frozen=True)
class Golden:
    """Golden numbers and the checkpoint that they were computed on.

    `UNIWORLD_GOLDEN` selects another folder with `golden.safetensors`, `cases.json`, `images/` and the models
    `uniworld/`, `flux/` and `siglip/`. The default uses the models that ship with the package.
    """

    folder: Path
    models: Path

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.folder / f"{name}.safetensors")

    def picture(self, name: str) -> Image.Image:
        picture = Image.open(self.folder / name)
        picture.load()
        return picture

    def open_model(self, **options: Any) -> UniWorld:
        from uniworld.uniworld_core import UniWorld

        folders = {"flux": self.models / "flux", "siglip": self.models / "siglip"}
        return UniWorld.from_pretrained(self.models / "uniworld", **folders | {"dtype": torch.float32} | options)


def golden_source() -> Golden:
    elsewhere = os.environ.get("UNIWORLD_GOLDEN")
    return Golden(Path(elsewhere), Path(elsewhere)) if elsewhere else Golden(DATA / "seed0", TINY)


@pytest.fixture(scope="session")
def golden_data() -> Golden:
    """The golden folder: UNIWORLD_GOLDEN, or the default one."""
    return golden_source()


@pytest.fixture(scope="session")
def model(golden_data: Golden) -> UniWorld:
    """The golden checkpoint in float32, shared by the tests that only read it."""
    return golden_data.open_model()


@dataclass(frozen=True)
class EditR1Golden:
    """What the published functions of Edit-R1 compute: settings and tensors of named cases.

    `UNIWORLD_GOLDEN_EDITR1` selects another folder with `cases.json` and `golden.safetensors`.
    """

    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def cases(self, prefix: str) -> list[tuple[str, dict[str, Any], dict[str, torch.Tensor]]]:
        """Return (name, settings, tensors) of the cases whose names have this prefix. There must be some."""
        names = [name for name, value in self.settings.items() if name.startswith(prefix) and isinstance(value, dict)]
        assert names, f"no case {prefix}*"
        return [(name, self.settings[name], self.of(name)) for name in names]

    def of(self, case: str) -> dict[str, torch.Tensor]:
        """Return the tensors of a case."""
        start = f"{case}/"
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


@pytest.fixture(scope="session")
def editr1_golden() -> EditR1Golden:
    """The golden numbers of Edit-R1: UNIWORLD_GOLDEN_EDITR1, or the default ones."""
    from safetensors.torch import load_file

    folder = Path(os.environ.get("UNIWORLD_GOLDEN_EDITR1") or DATA / "editr1")
    settings = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    return EditR1Golden(settings, load_file(folder / "golden.safetensors"))


@pytest.fixture(scope="session")
def editr1_pipes() -> EditR1Golden:
    """The complete rollouts of tiny Kontext and Qwen-Image-Edit models; only in the folder that UNIWORLD_GOLDEN_EDITR1 names."""
    from safetensors.torch import load_file

    folder = Path(os.environ.get("UNIWORLD_GOLDEN_EDITR1") or DATA / "editr1")
    if not (folder / "pipes.safetensors").is_file():
        pytest.skip("UNIWORLD_GOLDEN_EDITR1 names no folder with pipes.safetensors")
    settings = json.loads((folder / "pipes.json").read_text(encoding="utf-8"))
    return EditR1Golden(settings, load_file(folder / "pipes.safetensors"))


def _writer(name: str) -> ModuleType:
    """Import a module beside this file that writes a tiny model."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    return writer


@pytest.fixture(scope="session")
def tiny_unipic() -> ModuleType:
    """The module that writes a tiny UniPic and changes its weights."""
    return _writer("tiny_unipic")


@pytest.fixture(scope="session")
def unipic(tiny_unipic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny UniPic with random weights, shared by the tests that only read it."""
    folder: Path = tmp_path_factory.mktemp("models") / "unipic"
    tiny_unipic.write_unipic(folder, TINY / "uniworld")
    return folder


@pytest.fixture
def unipic_copy(unipic: Path, tmp_path: Path) -> Path:
    """A copy of `unipic` that a test may damage."""
    return Path(shutil.copytree(unipic, tmp_path / "unipic"))


@pytest.fixture(scope="session")
def qwen_edit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen-Image-Edit-2509 with random weights: the only model in a `diffusers` folder. Tests only read it."""
    from uniworld.uniworld_core.backbones.qwen_image_classes import has_qwen_image

    if not has_qwen_image():
        pytest.skip("the installed diffusers is too old for Qwen-Image")
    folder = tmp_path_factory.mktemp("qwen") / "diffusers" / "Qwen-Image-Edit-2509"
    _writer("tiny_qwen_edit").write_qwen_edit(folder, TINY / "uniworld")
    return folder


@pytest.fixture
def qwen_edit_copy(qwen_edit: Path, tmp_path: Path) -> Path:
    """A copy of `qwen_edit` that a test may damage."""
    return Path(shutil.copytree(qwen_edit, tmp_path / "qwen_edit"))


@pytest.fixture
def tiny_copy(tmp_path: Path) -> Path:
    """A copy of the shipped tiny model (`uniworld/`, `flux/`, `siglip/`) that a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


# --- a tiny FLUX.1 Kontext ------------------------------------------------------------------------------------------------


def make_kontext(folder: Path) -> Path:
    """Write a FLUX.1 Kontext with random weights in diffusers layout, with VAE, CLIP and T5 of the tiny model."""
    from diffusers import FluxTransformer2DModel

    shutil.copytree(TINY / "flux", folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_read_json(folder / "text_encoder_2" / "config.json")["d_model"],
            pooled_projection_dim=_read_json(folder / "text_encoder" / "config.json")["hidden_size"],
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    transformer.save_pretrained(folder / "transformer")
    index = _read_json(folder / "model_index.json") | {"_class_name": "FluxKontextPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def kontext_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX.1 Kontext with random weights, in models/diffusers under the published name. Tests only read it."""
    return make_kontext(tmp_path_factory.mktemp("kontext") / "models" / "diffusers" / "FLUX.1-Kontext-dev")


@pytest.fixture
def kontext_copy(kontext_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny FLUX.1 Kontext that a test may damage."""
    return Path(shutil.copytree(kontext_folder, tmp_path / "Kontext"))
