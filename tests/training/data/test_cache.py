"""The cache of the frozen parts' outputs: bit-exact, robust against kills, and checked against its key."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from uniworld.training.data.cache import Cache, CacheKey
from uniworld.training.data.cache_fill import create_or_open, fill
from uniworld.training.data.samples import Sample
from uniworld.training.files import locked
from uniworld.training.objective.batch import BadSample, EncodedSample
from uniworld.uniworld_core.errors import UniWorldError

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class NoPicture:
    name: str

    def read(self) -> bytes:
        raise UniWorldError("not read here")

    def open(self) -> None:
        raise UniWorldError("not read here")

    def size(self) -> tuple[int, int]:
        return 64, 96


@dataclass(frozen=True)
class Numbers:
    """`count` samples without pictures; those in `bad` have invalid annotations."""

    count: int
    bad: tuple[int, ...] = ()
    fingerprint: str = "numbers"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise BadSample(f"numbers#{index}", "it is bad.")
        return Sample(f"numbers#{index}", str(index), (), NoPicture(str(index)), False)

    def sizes(self, index: int) -> tuple[int, int]:
        if index in self.bad:
            raise UniWorldError("bad")
        return 64, 96


class Coder:
    """Encodes a sample's number; odd ones have T5 tokens and a weight."""

    fingerprint = "coder"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, samples: Sequence[Sample]) -> list[EncodedSample]:
        self.seen += [sample.key for sample in samples]
        return [encode(sample.key, int(sample.prompt)) for sample in samples]


def encode(key: str, number: int) -> EncodedSample:
    generator = torch.Generator().manual_seed(number)
    odd = number % 2 == 1
    length = 3 + number % 4
    return EncodedSample(
        key=key,
        hidden=torch.randn(length, 4, generator=generator).bfloat16(),
        ends=torch.arange(length) == 2,
        features=tuple(torch.randn(5, 3, generator=generator) for _ in range(number % 3)),
        pooled=torch.randn(2, 6, generator=generator)[1],
        t5=torch.randn(4, 7, generator=generator) if odd else None,
        latent=torch.randn(2, 8, 12, generator=generator).transpose(0, 0),
        weight=torch.rand(8, 12, generator=generator) if odd else None,
    )


def assert_same(found: EncodedSample, wanted: EncodedSample) -> None:
    for field in fields(EncodedSample):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        ones, others = (one, other) if isinstance(one, tuple) else ((one,), (other,))
        assert len(ones) == len(others)
        for mine, theirs in zip(ones, others):
            if isinstance(theirs, torch.Tensor):
                assert mine.dtype == theirs.dtype
                assert torch.equal(mine, theirs)
            else:
                assert mine == theirs


def made(folder: Path, samples: Numbers, **options: object) -> Cache:
    cache = create_or_open(folder, samples, Coder())
    fill(cache, samples, Coder(), **options)  # type: ignore[arg-type]
    return cache


def test_cached_samples_are_bit_identical(tmp_path: Path) -> None:
    made(tmp_path, Numbers(11), batch=3)
    cache = Cache(tmp_path, CacheKey("coder", "numbers"))
    assert len(cache) == 11
    assert cache.missing == 0
    for index in range(11):
        assert_same(cache[index], encode(f"numbers#{index}", index))


def test_views_of_one_batch_are_stored_correctly(tmp_path: Path) -> None:
    shared = torch.randn(2, 6)
    cache = create_or_open(tmp_path, Numbers(2), Coder())
    items = [replace(encode(str(index), index), pooled=shared[index]) for index in range(2)]
    cache.add(list(enumerate(items)))
    for index in range(2):
        assert_same(cache[index], items[index])


def test_bad_samples_are_recorded_by_name_and_raised_again(tmp_path: Path) -> None:
    made(tmp_path, Numbers(5, bad=(1, 4)))
    cache = Cache(tmp_path)
    assert cache.missing == 0
    assert [sample.key for sample in cache.bad.values()] == ["numbers#1", "numbers#4"]
    with pytest.raises(BadSample, match="numbers#4: it is bad"):
        cache[4]
    assert cache.sizes.tolist() == [[64, 96], [0, 0], [64, 96], [64, 96], [0, 0]]


def test_parts_with_only_bad_samples_or_empty_tensors_are_valid(tmp_path: Path) -> None:
    cache = made(tmp_path / "bad", Numbers(3, bad=(0, 1, 2)))
    assert len(Cache(tmp_path / "bad").bad) == len(cache.bad) == 3
    cache = create_or_open(tmp_path / "empty", Numbers(1), Coder())
    item = replace(encode("numbers#0", 0), features=(torch.zeros(0, 3),))
    cache.add([(0, item)])
    assert_same(Cache(tmp_path / "empty")[0], item)


def test_repaired_samples_are_computed_without_losing_any(tmp_path: Path) -> None:
    made(tmp_path, Numbers(5, bad=(0, 4)))
    parts = len(list((tmp_path / "parts").glob("*.safetensors")))
    made(tmp_path, Numbers(5, bad=(0, 4)))
    assert (
        len(list((tmp_path / "parts").glob("*.safetensors"))) == parts
    )  # samples that are still bad are not written again
    made(tmp_path, Numbers(5, bad=(4,)))
    cache = Cache(tmp_path)
    assert list(cache.bad) == [4]
    assert cache.sizes.tolist() == [[64, 96]] * 4 + [[0, 0]]
    for index in range(4):
        assert_same(cache[index], encode(f"numbers#{index}", index))


def test_more_bad_samples_than_the_limit_stop_it_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 samples are invalid, more than data.bad_limit = 1; the last is numbers#3"):
        made(tmp_path, Numbers(5, bad=(1, 3)), bad_limit=1)


def test_filling_continues_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniworld.training.data.cache_fill.PART_SAMPLES", 2)
    samples = Numbers(7)

    class Stops(Coder):
        def __call__(self, samples: Sequence[Sample]) -> list[EncodedSample]:
            if len(self.seen) == 5:
                raise KeyboardInterrupt
            return super().__call__(samples)

    with pytest.raises(KeyboardInterrupt):
        fill(create_or_open(tmp_path, samples, Coder()), samples, Stops(), batch=1)
    cache, coder = create_or_open(tmp_path, samples, Coder()), Coder()
    assert cache.missing == 3
    reported: list[tuple[int, int]] = []
    fill(cache, samples, coder, batch=2, progress=lambda done, total: reported.append((done, total)))
    assert coder.seen == ["numbers#4", "numbers#5", "numbers#6"]
    assert reported == [(6, 7), (7, 7)]
    for index in range(7):
        assert_same(cache[index], encode(f"numbers#{index}", index))


def test_processes_fill_disjoint_shares(tmp_path: Path) -> None:
    samples = Numbers(9)
    shares = []
    for rank in range(3):
        coder = Coder()
        fill(create_or_open(tmp_path, samples, coder), samples, coder, rank=rank, world=3)
        shares.append(coder.seen)
    assert sorted(key for share in shares for key in share) == [f"numbers#{index}" for index in range(9)]
    assert Cache(tmp_path).missing == 0


def test_two_processes_with_the_same_rank_are_rejected(tmp_path: Path) -> None:
    samples = Numbers(2)
    cache = create_or_open(tmp_path, samples, Coder())
    with (
        locked(tmp_path / "0-of-1.lock", wait=False, busy=""),
        pytest.raises(ValueError, match=r"Another process is filling the cache .* as 0-of-1"),
    ):
        fill(cache, samples, Coder())


@pytest.mark.parametrize(("field", "words"), [("encoder", "another checkpoint"), ("samples", "other annotations")])
def test_a_cache_with_another_key_is_rejected_with_both_keys_and_the_fix(
    tmp_path: Path, field: str, words: str
) -> None:
    made(tmp_path, Numbers(2))
    key = replace(CacheKey("coder", "numbers"), **{field: "another"})
    with pytest.raises(ValueError, match=words) as caught:
        Cache(tmp_path, key)
    assert all(
        word in str(caught.value) for word in (getattr(CacheKey("coder", "numbers"), field), "another", "choose")
    )


def test_a_folder_without_a_cache_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a cache: create one with `uniworld data cache`"):
        Cache(tmp_path)


def test_a_sample_that_is_not_computed_yet_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is missing sample 1 and 2 more: run `uniworld data cache` again"):
        create_or_open(tmp_path, Numbers(3), Coder())[1]


def test_a_flipped_byte_is_found_when_it_is_read(tmp_path: Path) -> None:
    made(tmp_path, Numbers(2))
    (part,) = (tmp_path / "parts").glob("*.safetensors")
    data = bytearray(part.read_bytes())
    data[-3] ^= 1
    part.write_bytes(data)
    cache = Cache(tmp_path)
    with pytest.raises(ValueError, match=r"part-0-of-1.*damaged.*the checksum of .* differs.*delete that file"):
        [cache[index] for index in range(2)]


def test_a_truncated_part_is_found_when_the_cache_is_opened(tmp_path: Path) -> None:
    made(tmp_path, Numbers(2))
    (part,) = (tmp_path / "parts").glob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"part-0-of-1.*damaged"):
        Cache(tmp_path)


def test_a_full_disk_is_a_user_error_and_leaves_no_partial_file(tmp_path: Path) -> None:
    samples = Numbers(6)
    cache = create_or_open(tmp_path, samples, Coder())
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(ValueError, match=r"cannot be written: File too large. Free disk space"):
            fill(cache, samples, Coder())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "parts").iterdir()) == []
    fill(cache, samples, Coder())
    assert Cache(tmp_path).missing == 0


def test_many_threads_and_pickled_copies_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniworld.training.data.cache_fill.PART_SAMPLES", 2)
    monkeypatch.setattr("uniworld.training.data.cache._OPEN_PARTS", 2)
    cache = made(tmp_path, Numbers(12), batch=1)
    copy = pickle.loads(pickle.dumps(cache))
    with ThreadPoolExecutor(4) as pool:
        order = [index % 12 for index in range(0, 120, 7)]
        for index, one, other in zip(order, pool.map(cache.__getitem__, order), pool.map(copy.__getitem__, order)):
            assert_same(one, encode(f"numbers#{index}", index))
            assert_same(other, one)


KILLED = """
import sys, time
sys.path[:0] = [{tests!r}, {here!r}]
import conftest
import test_cache
from uniworld.training.data import cache_fill
from uniworld.training.data.cache_fill import fill, create_or_open
from pathlib import Path
cache_fill.PART_SAMPLES = 2
samples, coder = test_cache.Numbers(40), test_cache.Coder()
def report(done, total):
    print(done, flush=True)
    time.sleep(0.005)
fill(create_or_open(Path(sys.argv[1]), samples, coder), samples, coder, batch=1, progress=report)
"""


def test_a_killed_process_loses_at_most_the_part_that_it_was_writing(tmp_path: Path) -> None:
    here = Path(__file__).parent
    program = KILLED.format(tests=str(ROOT / "tests"), here=str(here))
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        done = next(int(line) for line in process.stdout if int(line) >= 9)
        os.kill(process.pid, signal.SIGKILL)
    samples, coder = Numbers(40), Coder()
    cache = create_or_open(tmp_path, samples, coder)
    assert cache.missing <= 40 - done + 1
    fill(cache, samples, coder)
    assert len(coder.seen) <= 40 - done + 1
    assert not list((tmp_path / "parts").glob("*.part"))
    for index in range(40):
        assert_same(cache[index], encode(f"numbers#{index}", index))
