"""No file of a model folder runs code of its own: the sources call nothing that would, and folders that ask for it are opened without."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.loading.shipped import shipped_model

ROOT = Path(__file__).resolve().parents[3]
TINY = Path(shipped_model("tiny").checkpoint).parent


@cache
def sources() -> dict[str, ast.Module]:
    """The syntax trees of all files of the packages."""
    return {
        file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for room in ("uniworld_core", "nodes", "training")
        for file in sorted((ROOT / room).rglob("*.py"))
    }


# --- what the sources call --------------------------------------------------------------------------------------------


def names(tree: ast.AST) -> Iterator[str]:
    """Every name, attribute and import of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.name for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with what is called, such as `torch.load`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def constant(call: ast.Call, keyword: str) -> Any:
    """The constant that a call gives for a keyword; None where there is none."""
    found = [given.value for given in call.keywords if given.arg == keyword]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


@cache
def openable_classes() -> set[str]:
    """Names of the classes of the packages that have a `from_pretrained`."""
    return {
        node.name
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(part, ast.FunctionDef) and part.name == "from_pretrained" for part in node.body)
    }


def test_the_scan_sees_the_sources() -> None:
    assert {"uniworld_core/loading/headers.py", "nodes/pack/parts.py", "training/run/initial_weights.py"} <= set(
        sources()
    )
    assert {"UniWorld", "SigLIP", "VAE"} <= openable_classes()
    assert sum(name == "torch.load" for tree in sources().values() for name, _ in calls(tree)) >= 3


# Where a folder may be of any model of transformers: its configuration chooses among the classes of the library.
OF_ANY_MODEL = {"AutoModelForImageTextToText", "AutoProcessor"}


def test_no_class_is_chosen_by_what_a_folder_says() -> None:
    for source, tree in sources().items():
        # transformers' and diffusers' Auto classes import the module that a folder names. (AutoencoderKL is none of them.)
        assert {name for name in names(tree) if re.match("Auto[A-Z]", name)} <= OF_ANY_MODEL, source
        # The libraries' own from_pretrained reads every file of a folder, also pickles and code.
        for name, call in calls(tree):
            kind = name.split(".")[-2] if name.endswith(".from_pretrained") else "cls"
            if kind in openable_classes() | {"cls"}:
                continue
            assert constant(call, "local_files_only") is True, (source, name)
            assert kind not in OF_ANY_MODEL or constant(call, "trust_remote_code") is False, (source, name)
            assert kind.endswith("Processor") or constant(call, "use_safetensors") is True, (source, name)


def test_nothing_read_from_a_file_is_run() -> None:
    runners = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for source, tree in sources().items():
        assert runners.isdisjoint(names(tree)), source
        for name, call in calls(tree):
            assert name not in ("eval", "exec", "__import__"), source
            assert not constant(call, "trust_remote_code"), source
            assert not constant(call, "allow_pickle"), source
            assert name != "torch.load" or constant(call, "weights_only") is True, source


# --- folders that ask for it ------------------------------------------------------------------------------------------


@pytest.fixture
def evil(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model whose every folder holds a module that leaves a mark when it runs, and somebody who answers yes."""
    for folder in [path for path in tiny_copy.rglob("*") if path.is_dir()]:
        mark = f"open({str(tiny_copy / 'ran')!r}, 'w').close()\n"
        (folder / "evil.py").write_text(
            f"{mark}class Evil:\n    from_pretrained = classmethod(lambda *_, **__: None)\n"
        )
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(f"{mark}def generate(*_, **__): ...\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    return tiny_copy


def use(folder: Path) -> None:
    """Everything that a model is used for, on the files of a folder."""
    model = UniWorld.from_pretrained(folder / "uniworld", folder / "flux", folder / "siglip", dtype=torch.float32)
    assert model.encode("a red circle", use_t5=True).tokens.shape[0] == 1
    assert isinstance(model.understand("What is this?", max_new_tokens=1), str)
    model.route("Paint a dog.")
    assert model.dit.latent_format.channels
    assert model.siglip.width
    assert model.vae.latent_format


AUTO = {
    name: ["evil.Evil", "evil.Evil"] if name == "AutoTokenizer" else "evil.Evil"
    for name in (
        "AutoTokenizer",
        "AutoConfig",
        "AutoModel",
        "AutoProcessor",
        "AutoImageProcessor",
        "AutoModelForCausalLM",
    )
}
ASKING: dict[str, dict[str, Any]] = {
    "auto_map": {"auto_map": AUTO},
    "trusting itself": {"auto_map": AUTO, "trust_remote_code": True},
    "an attention from elsewhere": {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"},
    "custom_generate": {"custom_generate": "evil", "num_beams": 4, "guidance_scale": 3.0, "penalty_alpha": 0.6},
    "a quantizer": {"quantization_config": {"quant_method": "evil"}},
    "a file of its own": {"vocab_file": "/etc/passwd", "tokenizer_file": "../evil", "gguf_file": "evil.gguf"},
}


@pytest.mark.parametrize("how", ASKING)
def test_no_setting_runs_code_of_the_folder(evil: Path, how: str) -> None:
    for file in evil.rglob("*.json"):
        raw = json.loads(file.read_text(encoding="utf-8"))
        if file.name.endswith("config.json"):
            raw |= ASKING[how]
            if how == "auto_map" and "tokenizer_class" in raw:
                raw["tokenizer_class"] = "Evil"
            file.write_text(json.dumps(raw), encoding="utf-8")
    use(evil)
    assert not (evil / "ran").exists()


def test_nothing_but_tables_and_settings_is_needed(tmp_path: Path) -> None:
    # What is not there cannot be run: the folder opens without any other file.
    known = {".json", ".txt", ".safetensors", ".pt"}
    shutil.copytree(
        TINY, tmp_path / "tiny", ignore=lambda _, names: [n for n in names if Path(n).suffix not in known | {""}]
    )
    use(tmp_path / "tiny")
