"""The data of each step and process, with the shipped tiny model as the frozen parts."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from uniworld.training.data.cache import Cache, CacheKey
from uniworld.training.data.cache_fill import create_or_open, fill
from uniworld.training.data.encode import Encoder, EncodeSettings
from uniworld.training.data.loader import StepData, batches, plan_of
from uniworld.training.data.published import PublishedSamples
from uniworld.training.data.reading import prefetched
from uniworld.training.data.samples import Sample
from uniworld.training.objective.batch import BadSample, EncodedSample

AREA = 64 * 64
SIZES = [(64, 64), (96, 64), (64, 64), (64, 96), (64, 64), (96, 64), (64, 64)]


def write_data(folder: Path, damaged: Sequence[int] = ()) -> Path:
    """Write a list of seven samples, two of them without a reference; the targets of `damaged` are truncated."""
    annotations = []
    random = np.random.default_rng(0)
    for index, (width, height) in enumerate(SIZES):
        before = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        after = before.copy()
        after[8:40, 8:40] = (255, 0, 0)
        names = [f"{index}_before.png", f"{index}_after.png"][index in (2, 3) :]
        for name in names:
            Image.fromarray(before if "before" in name else after).save(folder / name)
        if index in damaged:
            target = folder / names[-1]
            target.write_bytes(target.read_bytes()[:-200])
        turns = [("human", "<image>\n" * (len(names) - 1) + f"Paint {index}."), ("gpt", "<gen_image>")]
        conversations = [{"from": role, "value": value} for role, value in turns]
        annotations.append({"image": names, "conversations": conversations})
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    (folder / "list.txt").write_text(".,annotations.json,true\n", encoding="utf-8")
    return folder / "list.txt"


@pytest.fixture(scope="module")
def encoder(golden_data: Any) -> Encoder:
    return Encoder(golden_data.open_model(), EncodeSettings(area=AREA))


class Names:
    """Replaces the frozen parts where only the order matters: decodes the target and encodes nothing."""

    fingerprint = "names"

    def __call__(self, samples: Sequence[Sample]) -> list[EncodedSample | BadSample]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> EncodedSample | BadSample:
        try:
            target = sample.target.open()
        except ValueError as error:
            return BadSample(sample.key, str(error))
        latent = torch.zeros(1, target.height // 8, target.width // 8)
        empty = torch.zeros(0)
        return EncodedSample(sample.key, empty, empty.bool(), (), empty, None, latent, None)


def steps(data: Any, encoder: Any, batch_size: int = 2, count: int = 6, **options: Any) -> list[StepData]:
    plan = plan_of(data, batch_size, 3, AREA)
    start = options.pop("start_step", 0)
    return list(batches(data, encoder, plan, start, count, **options))


def positions(step: StepData) -> list[int]:
    return [position for group in step.passes for position, _ in group]


def test_a_batch_has_one_size_and_an_epoch_every_sample(tmp_path: Path) -> None:
    samples = PublishedSamples(write_data(tmp_path))
    plan = plan_of(samples, 2, 3, AREA)
    seen = []
    for step in steps(samples, Names(), count=plan.steps_per_epoch, micro=2):
        (group,) = step.passes
        assert len({item.latent.shape for _, item in group}) == 1
        assert [position for position, _ in group] == [step.step * 2, step.step * 2 + 1]
        seen += [item.key for _, item in group]
    assert set(seen) == {f"annotations.json#{index}" for index in range(7)}


def test_passes_group_samples_of_similar_length(tmp_path: Path) -> None:
    class Lengths(Names):
        """Conditions whose unsorted lengths derive from the sample's number."""

        def _one(self, sample: Sample) -> EncodedSample | BadSample:
            item = super()._one(sample)
            length = 1 + 5 * int(sample.key[-1]) % 7
            return replace(item, hidden=torch.zeros(length, 1)) if isinstance(item, EncodedSample) else item

    samples = PublishedSamples(write_data(tmp_path))
    plain = steps(samples, Names(), batch_size=4, micro=4)
    for step, unsorted in zip(steps(samples, Lengths(), batch_size=4, micro=2), plain):
        first, second = ([len(item.hidden) for _, item in group] for group in step.passes)
        assert sorted(positions(step)) == positions(unsorted)
        assert [*first, *second] == sorted([*first, *second])
        assert len(first) == min(2, len(positions(step)))


def test_resuming_at_a_step_gives_the_data_of_the_uninterrupted_run(tmp_path: Path) -> None:
    samples = PublishedSamples(write_data(tmp_path))
    whole = steps(samples, Names(), count=12)
    rest = steps(samples, Names(), start_step=7, count=12)
    assert [[item.key for group in step.passes for _, item in group] for step in whole[7:]] == [
        [item.key for group in step.passes for _, item in group] for step in rest
    ]
    assert [positions(step) for step in whole[7:]] == [positions(step) for step in rest]


def test_processes_share_each_step_in_the_same_number_of_passes(tmp_path: Path) -> None:
    samples = PublishedSamples(write_data(tmp_path))
    alone = steps(samples, Names(), batch_size=4, count=3)
    shares = [steps(samples, Names(), batch_size=4, count=3, rank=rank, world=3, micro=1) for rank in range(3)]
    for number in range(3):
        assert [len(share[number].passes) for share in shares] == [2, 2, 2]
        assert sorted(position for share in shares for position in positions(share[number])) == positions(alone[number])


def test_a_bad_sample_is_skipped_by_name_and_not_replaced(tmp_path: Path) -> None:
    samples = PublishedSamples(write_data(tmp_path, damaged=(4,)))
    plan = plan_of(samples, 2, 3, AREA)
    for step in steps(samples, Names(), count=plan.steps_per_epoch, micro=2):
        planned = [slot for slot in plan.batch(step.step) if slot.sample != 4]
        assert positions(step) == [slot.position for slot in planned]
        assert [skip.key for skip in step.skipped] == ["annotations.json#4"] * (len(planned) < 2)
        for skip in step.skipped:
            assert "4_after.png' cannot be decoded" in skip.reason


def test_a_picture_that_changes_after_its_size_was_read_is_a_bad_sample(tmp_path: Path) -> None:
    samples = PublishedSamples(write_data(tmp_path))
    plan = plan_of(samples, 7, 0, AREA)
    for name in ("0", "1", "4", "5", "6"):
        Image.new("RGB", (96, 96)).save(tmp_path / f"{name}_after.png")
    made = list(batches(samples, Names(), plan, stop_step=plan.steps_per_epoch))
    assert {skip.key[-1] for step in made for skip in step.skipped} == set("01456")
    assert "has a painted size of 96x96 pixels, but was planned at" in made[0].skipped[0].reason


def test_a_picture_that_is_lost_later_does_not_change_the_order(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    keep = tmp_path / "sizes.safetensors"
    plan = plan_of(PublishedSamples(data), 2, 3, AREA, keep=keep)
    (tmp_path / "3_after.png").unlink()
    again = plan_of(PublishedSamples(data), 2, 3, AREA, keep=keep)
    assert [again.batch(step) for step in range(12)] == [plan.batch(step) for step in range(12)]
    data.write_text(".,annotations.json,false\n", encoding="utf-8")
    assert plan_of(PublishedSamples(data), 2, 3, AREA, keep=keep).counts() != plan.counts()
    keep.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"damaged .*: delete the file"):
        plan_of(PublishedSamples(data), 2, 3, AREA, keep=keep)


def test_cached_samples_equal_fresh_ones(tmp_path: Path, encoder: Encoder) -> None:
    samples = PublishedSamples(write_data(tmp_path, damaged=(6,)))
    fill(create_or_open(tmp_path / "cache", samples, encoder), samples, encoder, batch=1)
    cache = Cache(tmp_path / "cache", CacheKey(encoder.fingerprint, samples.fingerprint))
    for fresh, kept in zip(steps(samples, encoder), steps(cache, None), strict=True):
        assert [skip.key for skip in fresh.skipped] == [skip.key for skip in kept.skipped]
        assert positions(fresh) == positions(kept)
        for (_, one), (_, other) in zip(sum(fresh.passes, ()), sum(kept.passes, ()), strict=True):
            assert one.key == other.key
            assert_same_tensors(tensors(one), tensors(other))


def tensors(item: EncodedSample) -> list[torch.Tensor]:
    parts = (item.hidden, item.ends, item.pooled, item.latent, item.weight, *item.features)
    return [part for part in parts if part is not None]


def assert_same_tensors(ones: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_a_cache_of_other_settings_is_rejected(tmp_path: Path, encoder: Encoder) -> None:
    samples = PublishedSamples(write_data(tmp_path))
    create_or_open(tmp_path / "cache", samples, encoder)
    other = Encoder(encoder.model, EncodeSettings(area=AREA, weight="linear"))
    with pytest.raises(ValueError, match="created with another checkpoint, preprocessing"):
        create_or_open(tmp_path / "cache", samples, other)


def test_an_edit_of_a_few_specks_is_a_bad_sample(tmp_path: Path, encoder: Encoder) -> None:
    data = write_data(tmp_path)
    before = np.asarray(Image.open(tmp_path / "0_before.png"))
    after = before.copy()
    after[30, 30] = 255 - after[30, 30]
    Image.fromarray(after).resize((128, 128), Image.Resampling.NEAREST).save(tmp_path / "0_after.png")
    Image.fromarray(before).resize((128, 128), Image.Resampling.NEAREST).save(tmp_path / "0_before.png")
    samples = PublishedSamples(data)
    fine = Encoder(encoder.model, EncodeSettings(area=128 * 128))
    (found,) = fine([samples[0]])
    assert isinstance(found, BadSample)
    assert found.key == "annotations.json#0"
    assert "specks" in found.reason


def test_errors_of_the_encoder_reach_the_consumer(tmp_path: Path) -> None:
    class Breaks(Names):
        def __call__(self, samples: Sequence[Sample]) -> list[EncodedSample | BadSample]:
            raise ValueError("The model does not fit.")

    with pytest.raises(ValueError, match=r"The model does not fit\."):
        steps(PublishedSamples(write_data(tmp_path)), Breaks())


def test_closing_stops_every_thread(tmp_path: Path) -> None:
    samples = PublishedSamples(write_data(tmp_path))
    before = set(threading.enumerate())
    endless = batches(samples, Names(), plan_of(samples, 2, 0, AREA))
    assert [step.step for step in islice(endless, 20)] == list(range(20))
    endless.close()
    assert set(threading.enumerate()) <= before


def test_items_before_an_error_of_the_iterator_are_delivered_first() -> None:
    def three() -> Any:
        yield from range(3)
        raise OSError("gone")

    made = prefetched(three(), depth=8)
    assert list(islice(made, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(made)


def test_a_plan_of_other_data_and_a_missing_encoder_are_rejected(tmp_path: Path) -> None:
    samples = PublishedSamples(write_data(tmp_path))
    plan = plan_of(samples, 2, 0, AREA)
    with pytest.raises(ValueError, match="not cached need an encoder"):
        batches(samples, None, plan)
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        batches(samples, Names(), plan, rank=2, world=2)
    plan._bucket_N = plan._bucket_N[:-1]
    with pytest.raises(ValueError, match="The plan has 6 samples, but the data has 7"):
        batches(samples, Names(), plan)
