"""The dry run: trainable parameters, data and memory of a run, without loading weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from uniworld.training.config.file import config_from_dict, parse_toml
from uniworld.training.config.settings import Config
from uniworld.training.data.published import PublishedSamples
from uniworld.training.objective.trainable import TRAINABLE_PARTS
from uniworld.training.run.summary import RunSummary, estimate_memory, summarize
from uniworld.uniworld_core.loading import storage


@pytest.fixture
def data(tmp_path: Path) -> PublishedSamples:
    """Three square pictures and a wide one, as text-to-image samples."""
    annotations = []
    for index, size in enumerate([(64, 64), (64, 64), (96, 96), (128, 64)]):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": "Paint."}, {"from": "gpt", "value": "<gen_image>"}]
        annotations.append({"image": f"{index}.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(annotations), encoding="utf-8")
    (tmp_path / "data.txt").write_text(".,data.json,false\n", encoding="utf-8")
    return PublishedSamples(tmp_path / "data.txt")


def config(**sections: dict) -> Config:
    return config_from_dict(
        {
            "model": {"checkpoint": "tiny", "dtype": "float32"},
            "data": {"list": "data.txt", "area": 64 * 64},
            "run": {"steps": 6, "batch_size": 2},
        }
        | sections
    )


def summary(samples: PublishedSamples, processes: int = 1, **sections: dict) -> RunSummary:
    return summarize(config(**sections), Path("runs/a"), samples, processes)


def test_it_counts_trainable_and_frozen_parameters(data: PublishedSamples) -> None:
    made = summary(data)
    joint, vlm = 48, 64
    assert sum(made.trainable.values()) == (vlm + 1) * 3 * joint + (3 * joint + 1) * joint
    assert set(made.trainable) == {f"projectors.denoise_projector.{n}.{k}" for n in (0, 2) for k in ("weight", "bias")}
    whole = summary(data, stage={"parts": list(TRAINABLE_PARTS), "use_siglip": True})
    assert sum(whole.trainable.values()) + whole.frozen == sum(made.trainable.values()) + made.frozen


def test_it_lists_every_tensor_and_every_part_with_its_size(data: PublishedSamples) -> None:
    text = summary(data).text()
    assert "projectors.denoise_projector.0.weight" in text
    assert f"{64 * 144:,}" in text
    assert "(denoise_projector 16,320)" in text


def test_its_settings_are_toml_of_the_same_configuration(data: PublishedSamples) -> None:
    made = summary(data)
    assert config_from_dict(parse_toml(made.text(), "the summary")) == made.config


def test_it_lists_the_data_by_size_and_the_epochs(data: PublishedSamples) -> None:
    made = summary(data)
    assert (made.samples, sum(made.buckets.values()), len(made.buckets)) == (4, 4, 2)
    assert made.steps_per_epoch == 3
    assert "4 samples; 3 steps per epoch at batch size 2; the run has 6 steps, 2.00 epochs." in made.text()


def test_it_loads_no_weights(data: PublishedSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "place", lambda *_: pytest.fail("a tensor was read"))
    summary(data, stage={"parts": ["dit"]})


def test_the_estimated_memory_is_that_of_the_tensors(data: PublishedSamples) -> None:
    made = summary(data)
    trained = sum(made.trainable.values())
    readers = made.memory.parts["VLM, SigLIP, VAE, CLIP and T5"]
    assert readers > 0
    # Float32 parameters, gradients, two moments and EMA of what trains.
    assert made.memory.total == 4 * (5 * trained + made.frozen) + readers


def test_a_cache_replaces_the_frozen_parts(data: PublishedSamples) -> None:
    cached = summary(data, data={"list": "data.txt", "area": 64 * 64, "cache": "cache"})
    assert cached.memory.parts["VLM, SigLIP, VAE, CLIP and T5"] == 0


def test_the_ema_is_always_sharded_and_the_rest_by_fsdp() -> None:
    alone, sharded = config(), config(run={"parallel": "fsdp"})
    one = estimate_memory(alone, trained=600, frozen=300, encoders=7, processes=1).parts
    data_parallel = estimate_memory(alone, trained=600, frozen=300, encoders=7, processes=3).parts
    fsdp = estimate_memory(sharded, trained=600, frozen=300, encoders=7, processes=3).parts
    ema = "EMA (float32, sharded)"
    assert data_parallel == {**one, ema: one[ema] // 3}
    assert all(fsdp[name] == size // 3 for name, size in one.items() if size != 7)


def test_frozen_parameters_are_float32_if_fsdp_shards_them() -> None:
    half = config(model={"checkpoint": "tiny", "dtype": "bfloat16"}, run={"parallel": "fsdp"})
    assert estimate_memory(half, 0, frozen=300, encoders=0, processes=1).total == 2 * 300
    assert estimate_memory(half, 0, frozen=300, encoders=0, processes=3).total == 4 * 100


def test_prodigy_has_twice_the_state_of_adamw() -> None:
    from prodigyopt import Prodigy

    parameter = torch.nn.Parameter(torch.ones(50))
    optimizer = Prodigy([parameter])
    parameter.sum().backward()
    optimizer.step()
    kept = sum(value.numel() for value in optimizer.state[parameter].values() if torch.is_tensor(value))
    settings = replace(config().optimizer, name="prodigy")
    estimated = estimate_memory(replace(config(), optimizer=settings), 50, 0, 0, 1).parts
    assert 4 * kept == next(size for name, size in estimated.items() if name.startswith("prodigy"))


def test_a_missing_checkpoint_is_a_user_error(data: PublishedSamples) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        summary(data, model={"checkpoint": "nowhere"})
