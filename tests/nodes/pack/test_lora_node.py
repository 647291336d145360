"""UniWorld Load LoRA over the plain host and the tiny checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.nodes.headless.registry.registry import load_registry
from uniworld.nodes.headless.run.executor import Executor
from uniworld.nodes.pack.lora import lora_file, lora_names

PROMPT = "Replace the blue square with a green triangle."
SIZE = {"width": 64, "height": 64, "area_side": 64, "ratios": "any_11ratio", "batch_size": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", autouse=True)
def here(models: Path) -> Iterator[host.PlainHost]:
    installed = host.PlainHost(models=[models])
    host.install(installed)
    yield installed
    host.install(None)


@pytest.fixture(scope="module")
def parts() -> Any:
    values = {"checkpoint": "tiny", "flux": "tiny", "siglip": "auto", "dtype": "float32", "device": "cpu"}
    return NODE_CLASS_MAPPINGS["UniWorldLoader"]().execute(**values)


@pytest.fixture(scope="module")
def layer(parts: Any) -> nn.Linear:
    return parts[2].on_device().transformer.transformer_blocks[0].attn.to_q


@pytest.fixture(scope="module")
def written(models: Path, layer: nn.Linear) -> Callable[..., Path]:
    def write(name: str, size: float = 3.0, module: str = "transformer.transformer_blocks.0.attn.to_q") -> Path:
        file = models / "loras" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        down, up = torch.ones(2, layer.in_features) / 8, torch.ones(layer.out_features, 2) * size
        up[::2] *= -1
        save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, file)
        return file

    return write


@pytest.fixture(scope="module")
def painted(parts: Any) -> Callable[[Any], torch.Tensor]:
    vlm, _, _, _, text, *_ = parts
    conditioning = NODE_CLASS_MAPPINGS["UniWorldCondition"]().execute(
        vlm=vlm, prompt=PROMPT, t5_length=8, guidance=3.5, text=text
    )[0]
    latent = NODE_CLASS_MAPPINGS["UniWorldEmptyLatent"]().execute(**SIZE)[0]

    def paint(dit: Any) -> torch.Tensor:
        values = {"seed": 0, "steps": 1, "guidance": 3.5, "denoise": 1.0}
        sampler = NODE_CLASS_MAPPINGS["UniWorldSampler"]()
        return sampler.execute(dit=dit, conditioning=conditioning, latent=latent, **values)[0]["samples"]

    return paint


def adapted(dit: Any, name: str, strength: float = 1.0) -> Any:
    return NODE_CLASS_MAPPINGS["UniWorldLoadLoRA"]().execute(dit=dit, lora_name=name, strength_model=strength)[0]


def test_strengths_of_a_chain_add_up_and_removing_it_restores_the_image(parts: Any, written: Any, painted: Any) -> None:
    dit = parts[2]
    written("a.safetensors")
    plain = painted(dit)
    full, chained = adapted(dit, "a.safetensors"), adapted(adapted(dit, "a.safetensors", 0.25), "a.safetensors", 0.75)
    assert float((painted(full) - plain).abs().max()) > 1e-3
    torch.testing.assert_close(painted(chained), painted(full), rtol=1e-5, atol=1e-5)
    assert adapted(dit, "a.safetensors", 0.0) is dit
    assert full.facts is dit.facts
    assert torch.equal(painted(dit), plain)


def test_alpha_beside_a_file_in_a_subfolder_counts(parts: Any, written: Any, painted: Any) -> None:
    file = written("r1/adapter_model.safetensors")
    (file.parent / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    with_alpha = painted(adapted(parts[2], "r1/adapter_model.safetensors", 0.5))
    written("b.safetensors")
    torch.testing.assert_close(with_alpha, painted(adapted(parts[2], "b.safetensors")), rtol=1e-5, atol=1e-5)


def test_choices_are_the_files_of_the_folders(written: Any, models: Path) -> None:
    file = written("sub/c.safetensors")
    (models / "loras" / "d.ckpt").write_bytes(b"")
    assert "sub/c.safetensors" in lora_names()
    assert "uniworld_nano_negative.safetensors" in lora_names()
    assert "d.ckpt" not in lora_names()
    assert lora_file("sub/c.safetensors") == file
    for name in ("../c.safetensors", "none.safetensors", "d.ckpt", str(file)):
        with pytest.raises(ValueError, match="There is no LoRA"):
            lora_file(name)


def test_a_lora_of_another_model_is_refused_before_anything_runs(parts: Any, written: Any) -> None:
    written("other.safetensors", module="transformer.blocks.0.to_q")
    with pytest.raises(
        ValueError, match=r"1 of 1 modules are not in FluxTransformer2DModel: transformer.blocks.0.to_q"
    ):
        adapted(parts[2], "other.safetensors")
    with pytest.raises(ValueError, match="does not fit the model"):
        adapted(parts[2], "uniworld_nano_negative.safetensors")


def test_the_execution_cache_follows_strength_and_file(written: Any) -> None:
    file = written("e.safetensors")
    load = {"checkpoint": "tiny", "flux": "tiny", "siglip": "auto", "dtype": "float32", "device": "cpu"}
    sampling = {"seed": 0, "steps": 1, "guidance": 3.5, "denoise": 1.0}
    text = {"prompt": PROMPT, "t5_length": 8, "guidance": 3.5}
    adapter = {"dit": ["1", 2], "lora_name": "e.safetensors", "strength_model": 1.0}
    graph: dict[str, Any] = {
        "1": {"class_type": "UniWorldLoader", "inputs": load},
        "2": {"class_type": "UniWorldLoadLoRA", "inputs": adapter},
        "3": {"class_type": "UniWorldCondition", "inputs": {"vlm": ["1", 0], "text": ["1", 4]} | text},
        "4": {"class_type": "UniWorldEmptyLatent", "inputs": SIZE},
        "5": {
            "class_type": "UniWorldSampler",
            "inputs": {"dit": ["2", 0], "conditioning": ["3", 0], "latent": ["4", 0]} | sampling,
        },
    }
    here = host.current()
    assert isinstance(here, host.PlainHost)
    executor = Executor(load_registry(), here)

    def cached() -> set[str]:
        events: list[tuple[str, Any]] = []
        result = executor.run(graph, ["5"], on_event=lambda name, data: events.append((name, data)))
        assert result.status == "success", result
        return set(dict(events)["execution_cached"]["nodes"])

    assert cached() == set()
    assert cached() == {"1", "2", "3", "4", "5"}
    adapter["strength_model"] = 0.5
    assert cached() == {"1", "3", "4"}
    file.with_name("unrelated.safetensors").write_bytes(b"")
    assert cached() == {"1", "2", "3", "4", "5"}
    written("e.safetensors", size=2.0)
    os.utime(file, ns=(1, 1))
    assert cached() == {"1", "3", "4"}
