"""The dry run: what would train, on what, and in how much memory, without reading a weight."""

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
from uniworld.uniworld_core.loading import weights


@pytest.fixture
def data(tmp_path: Path) -> PublishedSamples:
    """Three square pictures and one wide one, to be painted from words."""
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


def test_it_counts_what_trains_and_what_does_not(data: PublishedSamples) -> None:
    made = summary(data)
    joint, vlm = 48, 64
    assert sum(made.trainable.values()) == (vlm + 1) * 3 * joint + (3 * joint + 1) * joint
    assert set(made.trainable) == {f"projectors.denoise_projector.{n}.{k}" for n in (0, 2) for k in ("weight", "bias")}
    whole = summary(data, stage={"parts": list(TRAINABLE_PARTS), "use_siglip": True})
    assert sum(whole.trainable.values()) + whole.frozen == sum(made.trainable.values()) + made.frozen


def test_it_names_every_tensor_with_its_count_and_every_part_with_its_sum(data: PublishedSamples) -> None:
    text = summary(data).text()
    assert "projectors.denoise_projector.0.weight" in text
    assert f"{64 * 144:,}" in text
    assert "(denoise_projector 16,320)" in text


def test_its_settings_are_toml_that_gives_the_same_run(data: PublishedSamples) -> None:
    made = summary(data)
    assert config_from_dict(parse_toml(made.text(), "the summary")) == made.config


def test_it_tells_the_data_by_size_and_epochs(data: PublishedSamples) -> None:
    made = summary(data)
    assert (made.samples, sum(made.buckets.values()), len(made.buckets)) == (4, 4, 2)
    assert made.steps_per_epoch == 3
    assert "4 samples; an epoch is 3 steps of 2, and the run 6 steps, 2.00 epochs." in made.text()


def test_it_reads_no_weight(data: PublishedSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "place", lambda *_: pytest.fail("a tensor was read"))
    summary(data, stage={"parts": ["dit"]})


def test_the_memory_of_a_run_is_that_of_its_tensors(data: PublishedSamples) -> None:
    made = summary(data)
    trained = sum(made.trainable.values())
    readers = made.memory.parts["VLM, SigLIP, VAE, CLIP and T5"]
    assert readers > 0
    # Weights, gradients, two moments and the EMA of what trains, once each in float32.
    assert made.memory.total == 4 * (5 * trained + made.frozen) + readers


def test_a_cache_spares_the_parts_that_read_samples(data: PublishedSamples) -> None:
    cached = summary(data, data={"list": "data.txt", "area": 64 * 64, "cache": "cache"})
    assert cached.memory.parts["VLM, SigLIP, VAE, CLIP and T5"] == 0


def test_the_ema_is_spread_always_and_the_rest_by_fsdp() -> None:
    alone, spread = config(), config(run={"parallel": "fsdp"})
    one = estimate_memory(alone, trained=600, frozen=300, readers=7, processes=1).parts
    data_parallel = estimate_memory(alone, trained=600, frozen=300, readers=7, processes=3).parts
    fsdp = estimate_memory(spread, trained=600, frozen=300, readers=7, processes=3).parts
    ema = "EMA (float32, this process's part)"
    assert data_parallel == {**one, ema: one[ema] // 3}
    assert all(fsdp[name] == size // 3 for name, size in one.items() if size != 7)


def test_what_does_not_train_is_in_float32_where_fsdp_spreads_it() -> None:
    half = config(model={"checkpoint": "tiny", "dtype": "bfloat16"}, run={"parallel": "fsdp"})
    assert estimate_memory(half, 0, frozen=300, readers=0, processes=1).total == 2 * 300
    assert estimate_memory(half, 0, frozen=300, readers=0, processes=3).total == 4 * 100


def test_prodigy_keeps_twice_what_adamw_does() -> None:
    from prodigyopt import Prodigy

    parameter = torch.nn.Parameter(torch.ones(50))
    optimizer = Prodigy([parameter])
    parameter.sum().backward()
    optimizer.step()
    kept = sum(value.numel() for value in optimizer.state[parameter].values() if torch.is_tensor(value))
    settings = replace(config().optimizer, name="prodigy")
    estimated = estimate_memory(replace(config(), optimizer=settings), 50, 0, 0, 1).parts
    assert 4 * kept == next(size for name, size in estimated.items() if name.startswith("prodigy"))


def test_a_checkpoint_that_is_not_there_is_told(data: PublishedSamples) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        summary(data, model={"checkpoint": "nowhere"})
