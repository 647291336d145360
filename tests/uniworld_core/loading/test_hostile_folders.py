"""Damaged and hostile model folders: each ends in one clear error, soon, and without taking memory."""

from __future__ import annotations

import base64
import copy
import json
import os
import pickle
import random
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import UniWorldError, brief, shown
from uniworld.uniworld_core.families.uniworld_v1.projectors import read_task_head
from uniworld.uniworld_core.loading.headers import read_header
from uniworld.uniworld_core.loading.settings import read_json
from uniworld.uniworld_core.loading.shipped import shipped_model

TINY = Path(shipped_model("tiny").checkpoint).parent
HEAD = "uniworld/task_head_final.pt"
SHARD = "uniworld/model-00001-of-00006.safetensors"
# Of processor time, which depends less on what else the machine does. An unchanged folder takes a tenth of it.
SECONDS = 6.0


@pytest.fixture(scope="module")
def warm() -> None:
    """Imports at the first use do not count towards the time of opening a folder."""
    use(TINY)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy of the tiny model for many tests, which put back what they change."""
    return Path(shutil.copytree(TINY, tmp_path_factory.mktemp("hostile") / "tiny"))


def open_folder(folder: Path) -> UniWorld:
    return UniWorld.from_pretrained(folder / "uniworld", folder / "flux", folder / "siglip", dtype=torch.float32)


def use(folder: Path) -> None:
    """Open a model and use every part of it once."""
    model = open_folder(folder)
    refs = model.reference([Image.new("RGB", (20, 30), (200, 40, 10))])
    condition = model.encode("A dog.", refs=refs, t5_length=2)
    model.route("Paint a dog.", refs=refs)
    model.understand("What?", refs=refs, max_new_tokens=1, temperature=0.7)
    model.decode(model.sample(condition, 32, 32, steps=1))


def refused(folder: Path, act: Callable[[Path], Any] = open_folder) -> str:
    """What is said of the folder: one sentence of this package's own, soon."""
    began = time.process_time()
    with pytest.raises(UniWorldError, match=r".{20,}") as error:
        act(folder)
    assert time.process_time() - began < SECONDS
    check_said(error.value)
    return str(error.value)


def check_said(error: UniWorldError) -> None:
    """The error was written here, names where it comes from, and can be read."""
    assert type(error) is UniWorldError
    assert "uniworld_core" in last_file(error)
    assert len(str(error)) < 1500


def last_file(error: BaseException) -> str:
    """The file that an error was raised in."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at.tb_frame.f_code.co_filename if at is not None else ""


# --- configurations that ask for too much, or for nothing -------------------------------------------------------------

ASKS: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "layers": ("uniworld/config.json", ("num_hidden_layers",), 100_000),
    "a layer too many": ("uniworld/config.json", ("num_hidden_layers",), 4),
    "vision depth": ("uniworld/config.json", ("vision_config", "depth"), 1_000_000),
    "windows": ("uniworld/config.json", ("vision_config", "window_size"), 10**8),
    "no window": ("uniworld/config.json", ("vision_config", "window_size"), 0),
    "merge size": ("uniworld/config.json", ("vision_config", "spatial_merge_size"), 0),
    "vision patch size": ("uniworld/config.json", ("vision_config", "patch_size"), 0),
    "dit layers": ("uniworld/config.json", ("denoise_tower", "denoiser_config", "num_layers"), 10**6),
    "dit single layers": ("uniworld/config.json", ("denoise_tower", "denoiser_config", "num_single_layers"), 100),
    "dit patch": ("uniworld/config.json", ("denoise_tower", "denoiser_config", "patch_size"), 0),
    "rotary sections": ("uniworld/config.json", ("rope_scaling", "mrope_section"), [1, 1, 1]),
    "rotary kind": ("uniworld/config.json", ("rope_scaling", "rope_type"), "yarn"),
    "vocabulary": ("uniworld/config.json", ("vocab_size",), 10**18),
    "a smaller vocabulary": ("uniworld/config.json", ("vocab_size",), 400),
    "another picture token": ("uniworld/config.json", ("image_token_id",), 5),
    "clip layers": ("flux/text_encoder/config.json", ("num_hidden_layers",), 100_000),
    "clip positions": ("flux/text_encoder/config.json", ("max_position_embeddings",), 10**9),
    "clip's end of text": ("flux/text_encoder/config.json", ("eos_token_id",), 7),
    "t5 layers": ("flux/text_encoder_2/config.json", ("num_layers",), 120),
    "t5 distance": ("flux/text_encoder_2/config.json", ("relative_attention_max_distance",), 8),
    "siglip layers": ("siglip/config.json", ("num_hidden_layers",), 10**5),
    "siglip picture": ("siglip/config.json", ("image_size",), 10**8),
    "siglip patch": ("siglip/config.json", ("patch_size",), 0),
    "vae layers": ("flux/vae/config.json", ("layers_per_block",), 10**6),
    "vae blocks": ("flux/vae/config.json", ("block_out_channels",), [8] * 10**4),
    "vae scale": ("flux/vae/config.json", ("scaling_factor",), 1e-300),
    "qwen picture": ("uniworld/preprocessor_config.json", ("max_pixels",), 10**8),
    "qwen no picture": ("uniworld/preprocessor_config.json", ("min_pixels",), 0),
    "qwen edge": ("uniworld/preprocessor_config.json", ("size", "longest_edge"), 10**8),
    "processor patch": ("uniworld/preprocessor_config.json", ("patch_size",), 0),
    "processor merge": ("uniworld/preprocessor_config.json", ("merge_size",), 0),
    "processor of another cut": ("uniworld/preprocessor_config.json", ("merge_size",), 4),
    "deviation": ("uniworld/preprocessor_config.json", ("image_std",), [0, 0, 0]),
    "no resizing": ("uniworld/preprocessor_config.json", ("do_resize",), False),
    "siglip processor": ("siglip/preprocessor_config.json", ("size", "height"), 10**8),
    "siglip no picture": ("siglip/preprocessor_config.json", ("size", "width"), 0),
    "end of answers": ("uniworld/generation_config.json", ("eos_token_id",), "end"),
    "repetition": ("uniworld/generation_config.json", ("repetition_penalty",), 0),
    "t5 scores": ("flux/tokenizer_2/tokenizer.json", ("model", "vocab"), [["", 0.0]]),
    "clip ids": ("flux/tokenizer/vocab.json", ("!",), 10**6),
    "ids twice": ("flux/tokenizer/vocab.json", ("!",), 1),
    "a merge": ("uniworld/tokenizer.json", ("model", "merges"), [["a", "b", "c"]]),
    "an unknown merge": ("uniworld/tokenizer.json", ("model", "merges"), [["zzz", "yyy"]]),
    "a merge to an unknown token": ("uniworld/tokenizer.json", ("model", "merges"), [["Ġassistant", "z"]]),
    "an end that is not a token": ("uniworld/tokenizer_config.json", ("eos_token",), "<nothing>"),
    "added ids": ("uniworld/tokenizer_config.json", ("added_tokens_decoder",), {"9": {"content": "<|image_pad|>"}}),
}


def changed(raw: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The JSON value with another value at a path."""
    raw = copy.deepcopy(raw)
    at = raw
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return raw


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("name", ASKS)
def test_a_setting_that_no_model_has_is_one_error_soon(shared: Path, name: str) -> None:
    file, path, value = ASKS[name]
    raw = json.loads((TINY / file).read_text(encoding="utf-8"))
    (shared / file).write_text(json.dumps(changed(raw, path, value)), encoding="utf-8")
    try:
        assert str(shared / Path(file).parts[0]) in refused(shared)
    finally:
        shutil.copyfile(TINY / file, shared / file)


@pytest.mark.usefixtures("warm")
def test_searches_and_code_in_a_generation_config_change_nothing(tiny_copy: Path) -> None:
    file = tiny_copy / "uniworld" / "generation_config.json"
    asked = {"num_beams": 10**6, "guidance_scale": 9.0, "custom_generate": "evil", "max_new_tokens": 10**9}
    more = {"penalty_alpha": 0.6, "cache_implementation": "evil", "num_return_sequences": 99, "assistant_model": "x"}
    before = open_folder(tiny_copy).understand("What is this?", max_new_tokens=3)
    file.write_text(json.dumps(json.loads(file.read_text()) | asked | more))
    assert open_folder(tiny_copy).understand("What is this?", max_new_tokens=3) == before


# --- JSON -------------------------------------------------------------------------------------------------------------

BROKEN: dict[str, bytes] = {
    "nested": b'{"a": ' * 100_000,
    "nested less": b'{"a": ' * 100 + b"0" + b"}" * 100,
    "nested lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a key twice": b'{"model_type": "a", "model_type": "b"}',
    "NaN": b'{"hidden_size": NaN}',
    "infinity": b'{"hidden_size": -Infinity}',
    "thousands of digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "no text": b'{"a": "\xff"}',
    "a list": b"[]",
    "spaces": b" " * (5 * 2**20) + b"{}",
}


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("file", ["uniworld/config.json", "flux/vae/config.json", "uniworld/tokenizer_config.json"])
def test_json_that_is_none_is_one_error_soon(shared: Path, file: str, how: str) -> None:
    (shared / file).write_bytes(BROKEN[how])
    try:
        assert str(shared / file) in refused(shared)
    finally:
        shutil.copyfile(TINY / file, shared / file)


IRREGULAR: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}
READERS: dict[str, Callable[[Path], Any]] = {
    "model.json": read_json,
    "model.safetensors": read_header,
    "task_head_final.pt": lambda path: read_task_head(path.parent, 64),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are files of Unix")
@pytest.mark.parametrize("what", IRREGULAR)
@pytest.mark.parametrize("name", READERS)
def test_special_files_are_refused_without_waiting(tmp_path: Path, name: str, what: str) -> None:
    IRREGULAR[what](tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is not a regular file"):
        READERS[name](tmp_path / name)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="there is no /proc")
def test_a_file_of_the_system_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to("/proc/self/maps")  # regular, and 0 bytes long by its status
    with pytest.raises(ValueError, match=r"a\.json has more than 10 bytes"):
        read_json(tmp_path / "a.json", limit=10)


def test_errors_are_short_however_large_the_value_is() -> None:
    deep: Any = "x" * 10**6
    for _ in range(50):
        deep = {"a": [deep, deep]}
    assert len(shown(deep)) < 500
    assert len(brief(ValueError("y " * 10**6))) < 400


# --- safetensors ------------------------------------------------------------------------------------------------------


def with_header(header: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + rest


def split(data: bytes) -> tuple[bytes, bytes]:
    """A safetensors file's header and the rest."""
    size = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + size], data[8 + size :]


HEADERS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "99 MB of spaces": lambda header, rest: with_header(header + b" " * (99 * 10**6), rest),
    "a length of 2**63": lambda header, rest: struct.pack("<Q", 2**63) + header + rest,
    "nested": lambda _, rest: with_header(b'{"a":' * 100_000, rest),
    "nested in metadata": lambda _, rest: with_header(b'{"__metadata__": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", rest),
    "a name twice": lambda header, rest: with_header(doubled(header), rest),
    "a list": lambda _, rest: with_header(b"[]", rest),
    "a huge shape": lambda _, rest: with_header(
        json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, len(rest)]}}).encode(), rest
    ),
    "an endless name": lambda _, rest: with_header(
        json.dumps({"a" * 10**6: {"dtype": "U8", "shape": [len(rest)], "data_offsets": [0, len(rest)]}}).encode(), rest
    ),
}


def doubled(header: bytes) -> bytes:
    """A header with its first tensor written twice."""
    entries = json.loads(header)
    name = next(name for name in entries if name != "__metadata__")
    entry = json.dumps({name: entries[name]})[1:-1].encode()
    return header.rstrip()[:-1] + b", " + entry + b"}"


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("how", HEADERS)
@pytest.mark.parametrize("file", [SHARD, "flux/vae/diffusion_pytorch_model.safetensors"])
def test_a_header_that_is_none_is_one_error_soon(shared: Path, file: str, how: str) -> None:
    (shared / file).write_bytes(HEADERS[how](*split((TINY / file).read_bytes())))
    try:
        assert Path(file).name in refused(shared)
    finally:
        shutil.copyfile(TINY / file, shared / file)


def test_a_tensor_in_two_shards_is_refused(tiny_copy: Path) -> None:
    from safetensors.torch import save_file

    one, other = (tiny_copy / SHARD.replace("00001-", f"{number:05d}-") for number in (1, 2))
    tensors = load_file(one)
    name = next(iter(tensors))
    save_file(load_file(other) | {name: tensors[name]}, other)
    assert f"{name} is stored in both" in refused(tiny_copy)


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "x" * 300 + ".safetensors"},
        {"a": "\ud800"},
        {"a": 5},
        {"a": ["x"]},
        {"a": "model\0.safetensors"},
        {str(n): f"{n}.safetensors" for n in range(5000)},
    ],
    ids=["an endless name", "half a character", "a number", "a list", "half a name", "5000 files"],
)
def test_an_index_of_no_files_is_refused(tiny_copy: Path, weight_map: dict[str, Any]) -> None:
    (tiny_copy / "uniworld" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model.safetensors.index.json" in refused(tiny_copy)


def add_shards(folder: Path, header: dict[str, Any], count: int) -> Path:
    """Put one file of that header into a folder, and name it in its index under so many names."""
    text = json.dumps(header).encode()
    (folder / "added.bin").write_bytes(with_header(text, b""))
    index = folder / "model.safetensors.index.json"
    names = {f"t{number}": f"added{number}.safetensors" for number in range(count)}
    for name in names.values():
        (folder / name).symlink_to("added.bin")
    raw = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps(raw | {"weight_map": raw["weight_map"] | names}), encoding="utf-8")
    return folder


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


@pytest.mark.usefixtures("warm")
def test_headers_are_bounded_together(tiny_copy: Path) -> None:
    add_shards(tiny_copy / "uniworld", {"__metadata__": {"a": "x" * (3 * 2**20)}, "t0": EMPTY}, 100)
    assert "all headers of a folder may have" in refused(tiny_copy)


@pytest.mark.usefixtures("warm")
def test_tensors_are_bounded_together(tiny_copy: Path) -> None:
    add_shards(tiny_copy / "uniworld", {f"t{number}": EMPTY for number in range(60_000)}, 1)
    assert "it lists 60000 tensors" in refused(tiny_copy)


@pytest.mark.usefixtures("warm")
def test_as_many_tensors_as_are_read_take_little_time(tiny_copy: Path) -> None:
    names = [f"model.layers.{number}.mlp.weight" for number in range(19_000)]
    add_shards(tiny_copy / "uniworld", {name: EMPTY for name in ["t0", *names]}, 1)
    assert "do not match the configuration" in refused(tiny_copy)


def test_a_shard_without_what_the_index_says_it_holds_is_refused(tiny_copy: Path) -> None:
    add_shards(tiny_copy / "uniworld", {"__metadata__": {"a": "b"}}, 1)
    said = refused(tiny_copy)
    assert "added0.safetensors holds none of the tensors" in said
    assert "(t0)" in said


# --- the routing head -------------------------------------------------------------------------------------------------


def head(**changes: torch.Tensor) -> dict[Any, Any]:
    return dict(torch.load(TINY / HEAD, weights_only=True)) | {name.replace("_", "."): t for name, t in changes.items()}


HEADS: dict[str, Callable[[], Any]] = {
    "an expanded bias": lambda: head(**{"0_bias": torch.zeros(1).expand(10**12)}),
    "an expanded weight": lambda: head(**{"3_weight": torch.zeros(1, 1).expand(2, 10**12)}),
    "a tensor of no memory": lambda: head(**{"0_bias": torch.empty(10**12, device="meta")}),
    "a sparse one": lambda: head(**{"0_bias": torch.zeros(10**6).to_sparse()}),
    "whole numbers": lambda: head(**{"3_bias": torch.zeros(2, dtype=torch.int64)}),
    "other names": lambda: {"x" * 10**4: torch.zeros(1)},
}


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("how", HEADS)
def test_an_invalid_routing_head_is_refused_fast(shared: Path, how: str) -> None:
    torch.save(HEADS[how](), shared / HEAD)
    try:
        assert "task_head_final.pt" in refused(shared)
    finally:
        shutil.copyfile(TINY / HEAD, shared / HEAD)


def repacked(file: Path, data: bytes | None = None, kind: int = zipfile.ZIP_STORED) -> None:
    """Write torch's archive once more, packed otherwise or with another pickle."""
    with zipfile.ZipFile(TINY / HEAD) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, data if data is not None and name.endswith("data.pkl") else content)


ARCHIVES: dict[str, Callable[[Path], Any]] = {
    "keys within keys": lambda file: repacked(file, nested_keys(200)),
    "a pickle of megabytes": lambda file: repacked(file, pickle.dumps(["x"] * 10**6, protocol=2)),
    "packed": lambda file: repacked(file, kind=zipfile.ZIP_DEFLATED),
    "a list of parts without end": lambda file: claim_a_long_list(file),
    "no pickle": lambda file: repacked(file, b""),
    "thousands of parts": lambda file: many_parts(file),
    "torch's old format": lambda file: torch.save(head(), file, _use_new_zipfile_serialization=False),
}


def nested_keys(levels: int) -> bytes:
    """A pickle of a dictionary whose key takes twice as long to hash with every level."""
    key = b")q\x00"  # the empty tuple, as memo 0
    for level in range(levels):
        key += b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])  # a pair of the last and the last
    return b"\x80\x02}" + key + b"K\x00s."


def many_parts(file: Path) -> None:
    shutil.copyfile(TINY / HEAD, file)
    with zipfile.ZipFile(file, "a") as archive:
        for number in range(2000):
            archive.writestr(f"archive/data/x{number}", b"0")


def claim_a_long_list(file: Path) -> None:
    """An archive that ends in a list of parts of 400 MB."""
    size = 400_000_000
    with file.open("wb") as opened:
        opened.truncate(size)
        opened.seek(size)
        opened.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, size, 0, 0))


def test_a_head_larger_than_any_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "task_head_final.pt").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ValueError, match="has 2147483648 bytes, more than the limit of"):
        read_task_head(tmp_path, 64)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("how", ARCHIVES)
def test_an_archive_that_torch_did_not_write_is_refused(shared: Path, how: str) -> None:
    ARCHIVES[how](shared / HEAD)
    try:
        assert "was rejected" in refused(shared)
    finally:
        shutil.copyfile(TINY / HEAD, shared / HEAD)


# --- every file, changed at random ------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    0,
    1,
    -1,
    3,
    10**5,
    10**8,
    10**18,
    -(10**18),
    0.5,
    1e-30,
    1e30,
    float("nan"),
    float("inf"),
    "x",
    "",
    "\ud800",
    None,
    True,
    False,
    [],
    [0],
    [1, 2, 3],
    [[[]]],
    {},
    {"a": 1},
    ["a"] * 1000,
)
CHANGES = 2  # of each file
# What is not read is not looked at long: the checkpoint's DiT and its flow take the place of FLUX's.
UNREAD = {"model_index.json", "scheduler_config.json", "special_tokens_map.json", "chat_template.json"}


def places(raw: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of a JSON value's parts; of long lists and tables the first and last few."""
    if path:
        yield path
    keys = list(raw) if isinstance(raw, dict) else list(range(len(raw))) if isinstance(raw, list) else []
    for key in keys if len(keys) <= 40 else (*keys[:2], *keys[-2:]):
        yield from places(raw[key], (*path, key))


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("file", sorted(file.relative_to(TINY).as_posix() for file in TINY.rglob("*.json")))
def test_any_value_anywhere_is_taken_or_named(shared: Path, file: str) -> None:
    draw = random.Random(file)
    raw = json.loads((TINY / file).read_text(encoding="utf-8"))
    spots = list(places(raw))
    try:
        for _ in range(1 if Path(file).name in UNREAD else CHANGES):
            path, value = draw.choice(spots), draw.choice(VALUES)
            (shared / file).write_text(json.dumps(changed(raw, path, value)), encoding="utf-8")
            began = time.process_time()
            try:
                use(shared)
            except UniWorldError as error:
                check_said(error)
            assert time.process_time() - began < SECONDS, (path, value)
    finally:
        shutil.copyfile(TINY / file, shared / file)


@pytest.mark.parametrize("file", ["flux/tokenizer_2/tokenizer.json"])
def test_a_table_of_characters_that_is_none_is_an_error(shared: Path, file: str) -> None:
    # SentencePiece's table is read in Rust, where damage may end in a panic: no Exception, and never seen by a user.
    draw = random.Random(0)
    raw = json.loads((TINY / file).read_text(encoding="utf-8"))
    try:
        for size in (0, 1, 4, 5, 40, 400, 4000):
            table = struct.pack("<I", draw.choice([size, size // 2 // 4 * 4])) + draw.randbytes(size)
            text = base64.b64encode(table).decode()
            changed_raw = raw | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}
            (shared / file).write_text(json.dumps(changed_raw), encoding="utf-8")
            try:
                open_folder(shared).text.t5.tokens(["A dog, 12 x é 中文."], 8)
            except UniWorldError as error:
                check_said(error)
    finally:
        shutil.copyfile(TINY / file, shared / file)
