"""Shards contain the samples of the list, in its order, and are written atomically."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from uniworld.training.data.loader import plan_of
from uniworld.training.data.published import PublishedSamples
from uniworld.training.data.shard_samples import ShardSamples
from uniworld.training.data.shards import check_shards, write_shards
from uniworld.training.objective.batch import BadSample
from uniworld.uniworld_core.errors import UniWorldError

pytest.importorskip("webdataset")

COUNT = 7


@pytest.fixture
def samples(tmp_path: Path) -> PublishedSamples:
    """Seven samples: number 2 has no reference file, number 4 has an extra mark, number 5 is text to image."""
    random = np.random.default_rng(0)
    annotations = []
    for index in range(COUNT):
        size = (48, 64 if index % 2 else 48, 3)
        names = [f"{index}.before.png", f"{index}.JPG"] if index != 5 else ["5.png"]
        for name in names:
            Image.fromarray(random.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / name)
        prompt = "<image>" * (len(names) - 1 + (index == 4)) + f"Färbe {index}."
        turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": "<gen_image>"}]
        annotations.append({"image": names, "conversations": turns})
    (tmp_path / "2.before.png").unlink()
    (tmp_path / "a.json").write_text(json.dumps(annotations), encoding="utf-8")
    (tmp_path / "list.txt").write_text(".,a.json,true\n", encoding="utf-8")
    return PublishedSamples(tmp_path / "list.txt")


def test_samples_of_shards_are_those_of_the_list(samples: PublishedSamples, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    write_shards(samples, tmp_path / "shards", per_shard=3, progress=lambda done, total: reported.append((done, total)))
    shards = ShardSamples(tmp_path / "shards")
    assert reported == [(3, 7), (6, 7), (7, 7)]
    assert len(shards) == COUNT
    assert [shard.count for shard in shards.shards] == [3, 3, 1]
    for index in (0, 1, 3, 5, 6):
        mine, theirs = shards[index], samples[index]
        assert (mine.key, mine.prompt, mine.weighted) == (theirs.key, theirs.prompt, theirs.weighted)
        for one, other in zip((*mine.references, mine.target), (*theirs.references, theirs.target), strict=True):
            assert one.read() == other.read()
            assert one.name == other.name
            assert one.open() == other.open()
            assert one.size() == other.size()


def test_bad_samples_keep_their_position_and_reason(samples: PublishedSamples, tmp_path: Path) -> None:
    shards = write_shards(samples, tmp_path / "shards", per_shard=3)
    with pytest.raises(BadSample, match=r"a\.json#2: The picture '.*2\.before\.png' does not exist"):
        shards[2]
    with pytest.raises(BadSample, match=r"a\.json#4: it has 2 <image> marks"):
        shards[4]


def test_plans_and_caches_of_the_list_are_those_of_its_shards(samples: PublishedSamples, tmp_path: Path) -> None:
    shards = write_shards(samples, tmp_path / "shards", per_shard=2)
    assert shards.fingerprint == samples.fingerprint
    one, other = plan_of(samples, 2, 0, 64 * 64), plan_of(shards, 2, 0, 64 * 64)
    assert [one.batch(step) for step in range(20)] == [other.batch(step) for step in range(20)]


def test_webdataset_itself_reads_the_shards(samples: PublishedSamples, tmp_path: Path) -> None:
    import webdataset

    write_shards(samples, tmp_path / "shards", per_shard=COUNT)
    path = tmp_path / "shards" / "shard-000000.tar"
    found = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in found] == [f"{index:09d}" for index in range(COUNT)]
    assert found[0]["json"]["prompt"] == "Färbe 0."
    assert found[0]["0.png"].size == (48, 48)


def test_finished_shards_are_kept_and_the_others_written(samples: PublishedSamples, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_shards(samples, folder, per_shard=2)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    # The state after a kill: one shard partially written, one without offsets, and no list of shards.
    (folder / "shard-000001.tar").replace(folder / f".shard-000001.tar.{'9' * 16}.part")
    for name in ("shard-000001.safetensors", "shard-000002.safetensors"):
        (folder / name).unlink()
    index = json.loads(whole["index.json"]) | {"shards": []}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    kept = (folder / "shard-000000.tar").stat().st_mtime_ns
    with pytest.raises(ValueError, match="are not finished: run `uniworld data shards` again"):
        ShardSamples(folder)
    write_shards(samples, folder, per_shard=2)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == kept


def test_shards_of_another_list_or_size_are_rejected(samples: PublishedSamples, tmp_path: Path) -> None:
    write_shards(samples, tmp_path / "shards", per_shard=2)
    with pytest.raises(
        ValueError, match=r"contains shards of another size \(per_shard is 2, now 3\): choose another folder"
    ):
        write_shards(samples, tmp_path / "shards", per_shard=3)
    (tmp_path / "list.txt").write_text(".,a.json,false\n", encoding="utf-8")
    with pytest.raises(ValueError, match="contains shards of another list"):
        write_shards(PublishedSamples(tmp_path / "list.txt"), tmp_path / "shards", per_shard=2)


def test_a_full_disk_is_a_user_error_and_leaves_no_partial_file(samples: PublishedSamples, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15000, hard))
    try:
        with pytest.raises(ValueError, match=r"shard-000000\.tar' cannot be written: File too large"):
            write_shards(samples, tmp_path / "shards", per_shard=COUNT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name for file in (tmp_path / "shards").iterdir()} == {"index.json", "writing.lock"}
    assert len(write_shards(samples, tmp_path / "shards", per_shard=COUNT)) == COUNT


def test_damaged_shards_are_named(samples: PublishedSamples, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_shards(samples, folder, per_shard=4)
    assert check_shards(folder) == ()
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    (problem,) = check_shards(folder)
    assert "shard-000001.tar' is damaged" in problem
    path.write_bytes(data[:-512])
    with pytest.raises(ValueError, match=r"shard-000001\.tar' has \d+ bytes, expected"):
        ShardSamples(folder)


@pytest.mark.parametrize(
    "changed",
    [{"per_shard": []}, {"per_shard": 0}, {"shards": [{}]}, {"shards": 3}, {"fingerprint": None}, {"shards": [1]}],
)
def test_an_index_with_a_value_of_the_wrong_type_is_rejected(
    samples: PublishedSamples, tmp_path: Path, changed: dict[str, object]
) -> None:
    write_shards(samples, tmp_path / "shards")
    index = tmp_path / "shards" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    with pytest.raises(UniWorldError, match=r"index\.json' is not a valid index \(.+\): create the shards again\.$"):
        ShardSamples(tmp_path / "shards")


def test_a_finished_shard_that_is_damaged_is_named(samples: PublishedSamples, tmp_path: Path) -> None:
    write_shards(samples, tmp_path / "shards")
    (tmp_path / "shards" / "index.json").unlink()
    (offsets,) = (tmp_path / "shards").glob("*.safetensors")
    offsets.write_bytes(b"truncated")
    with pytest.raises(UniWorldError, match=r"shard-000000\.safetensors' is damaged .*: delete it"):
        write_shards(samples, tmp_path / "shards")


def test_missing_shards_are_named(samples: PublishedSamples, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no shards: create them with `uniworld data shards`"):
        ShardSamples(tmp_path)
    write_shards(samples, tmp_path / "shards")
    shutil.move(tmp_path / "shards" / "shard-000000.safetensors", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"shard-000000\.tar' or its \.safetensors cannot be read"):
        ShardSamples(tmp_path / "shards")
