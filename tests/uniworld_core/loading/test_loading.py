"""Loading: parts load separately, when first used and strictly, and errors say what to do."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from uniworld.uniworld_core import VAE, SigLIP, UniWorld
from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS, read_latent_format
from uniworld.uniworld_core.backbones.flux_text import CLIP, T5
from uniworld.uniworld_core.families.uniworld_v1.checkpoint import UniWorldParts
from uniworld.uniworld_core.loading.shipped import shipped_model, shipped_names
from uniworld.uniworld_core.loading.storage import NamedStorage
from uniworld.uniworld_core.loading.weights import Shards
from uniworld.uniworld_core.sampling.latents import preview

TINY = Path(shipped_model("tiny").checkpoint).parent
FLOAT32 = torch.float32


def edit_json(file: Path, **changes: Any) -> None:
    raw = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}), encoding="utf-8")


def shard_with(folder: Path, tensor: str) -> Path:
    return Shards(folder).files[tensor]


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def open_copy(folder: Path, **options: Any) -> UniWorld:
    return UniWorld.from_pretrained(
        folder / "uniworld", flux=folder / "flux", siglip=folder / "siglip", **{"dtype": FLOAT32} | options
    )


# --- parts alone, and only when asked for ----------------------------------------------------------------------------


def test_understanding_needs_only_the_vlm(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY / "uniworld", tmp_path / "alone"))
    vlm = UniWorldParts(folder)["vlm"].load(FLOAT32)
    assert isinstance(vlm.answer(["What is this?"], [[Image.new("RGB", (30, 30))]], max_new_tokens=3)[0], str)


def test_checkpoint_alone_understands_and_routes_and_says_what_else_needs() -> None:
    model = UniWorld.from_pretrained(TINY / "uniworld", dtype=FLOAT32)
    refs = model.reference([Image.new("RGB", (30, 30))], use_siglip=False)
    assert isinstance(model.understand("What is this?", refs=refs, max_new_tokens=2), str)
    assert model.route("Paint a dog.", refs=refs).logits.shape == (1, 2)
    for call, part in (
        (lambda: model.encode("A dog."), "flux"),
        (lambda: model.decode(torch.zeros(1, 16, 4, 4)), "flux"),
        (lambda: model.reference([Image.new("RGB", (30, 30))]), "siglip"),
    ):
        with pytest.raises(ValueError, match=part):
            call()


def test_sampling_needs_only_the_dit(model: UniWorld, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY / "uniworld", tmp_path / "alone"))
    for file in folder.iterdir():
        if not (file.suffix == ".safetensors" or file.name in ("config.json", "model.safetensors.index.json")):
            file.unlink()
    dit = UniWorldParts(folder)["dit"].load(FLOAT32)
    assert dit.latent_format == FLUX_LATENTS
    latent_format = UniWorldParts(folder, TINY / "flux")["dit"].load(FLOAT32).latent_format
    assert latent_format == read_latent_format(TINY / "flux")
    condition = UniWorld.from_pretrained("tiny", dtype=FLOAT32).encode("A dog.", use_t5=False)
    assert torch.isfinite(dit.velocity(torch.zeros(1, 16, 4, 4), 0.5, condition, 3.5)).all()


def test_siglip_vae_clip_and_t5_load_independently(tmp_path: Path) -> None:
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(TINY / "flux" / part, tmp_path / "clip" / part)
    for part in ("text_encoder_2", "tokenizer_2"):
        shutil.copytree(TINY / "flux" / part, tmp_path / "t5" / part)
    shutil.copytree(TINY / "flux" / "vae", tmp_path / "vae" / "vae")
    shutil.copytree(TINY / "siglip", tmp_path / "siglip")
    assert CLIP.from_pretrained(tmp_path / "clip", FLOAT32).pool(["a", "b c"]).shape == (2, 32)
    assert T5.from_pretrained(tmp_path / "t5", FLOAT32).tokens(["a", "b c"], 7).shape == (2, 7, 48)
    assert VAE.from_pretrained(tmp_path / "vae", FLOAT32).decode(torch.zeros(1, 16, 2, 2)).shape == (1, 16, 16, 3)
    siglip = SigLIP.from_pretrained(tmp_path / "siglip", FLOAT32)
    assert siglip.features([Image.new("RGB", (9, 5))]).shape == (1, 16, siglip.width)


def test_opening_reads_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NamedStorage, "put", lambda *_: pytest.fail("a tensor was read"))
    model = UniWorld.from_pretrained("tiny")
    assert model.parts.loaded() == set()
    with pytest.raises(pytest.fail.Exception, match="a tensor was read"):
        _ = model.vae


def test_each_part_is_loaded_when_something_asks_for_it() -> None:
    model = UniWorld.from_pretrained("tiny", dtype=FLOAT32)
    loaded = model.parts.loaded
    refs = model.reference([Image.new("RGB", (8, 8))], use_siglip=False)
    assert loaded() == set()
    assert isinstance(model.understand("What?", max_new_tokens=1), str)
    assert loaded() == {"vlm"}
    reads = {"vlm", "projectors", "task_head", "understanding"}
    model.route("Paint.", refs=refs)
    assert loaded() == reads
    condition = model.encode("Paint.", refs=refs, use_t5=False)
    assert loaded() == {*reads, "clip"}
    model.reference([Image.new("RGB", (8, 8))])
    assert loaded() == {*reads, "clip", "siglip"}
    z = model.sample(condition, 16, 16, steps=1)
    assert loaded() == {*reads, "clip", "siglip", "dit"}
    model.decode(z)
    model.encode("Paint.", t5_length=4)
    assert loaded() == {*reads, "clip", "siglip", "dit", "vae", "t5"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_take_the_wanted_type_and_computed_buffers_keep_theirs(dtype: torch.dtype) -> None:
    model = UniWorld.from_pretrained("tiny", dtype=dtype)
    for part in (model.vlm, model.projectors, model.dit, model.vae, model.siglip, model.text.clip, model.text.t5):
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}
        assert not any(parameter.is_meta or parameter.requires_grad for parameter in part.parameters())
        assert not any(module.training for name, module in part.named_modules() if name)
    assert {p.dtype for p in model.understanding.task_head.parameters()} == {FLOAT32}
    buffers = {name: buffer for name, buffer in model.vlm.named_buffers() if "inv_freq" in name}
    assert buffers
    assert {buffer.dtype for buffer in buffers.values()} == {FLOAT32}


def test_bfloat16_paints_what_float32_paints_nearly(model: UniWorld) -> None:
    half = UniWorld.from_pretrained("tiny", dtype=torch.bfloat16)
    picture, size = Image.new("RGB", (40, 30), (200, 40, 10)), {"height": 32, "width": 48}
    images = []
    for one in (half, UniWorld.from_pretrained("tiny", dtype=FLOAT32)):
        condition = one.encode("Make it blue.", refs=one.reference([picture]), t5_length=8)
        z = one.sample(condition, **size, steps=2)
        assert z.dtype == FLOAT32
        images.append(one.decode(z))
    assert images[0].dtype == FLOAT32
    assert float((images[0] - images[1]).abs().mean()) < 0.1


def test_files_may_go_or_change_after_loading(tiny_copy: Path) -> None:
    # In float32 nothing is converted: the tensors must be copies and not views of the mapped files.
    model = open_copy(tiny_copy)
    modules = {
        "understanding": model.understanding,
        "dit": model.dit,
        "vae": model.vae,
        "siglip": model.siglip,
        "clip": model.text.clip,
        "t5": model.text.t5,
    }
    before = {f"{part}.{k}": v.clone() for part, module in modules.items() for k, v in module.state_dict().items()}
    for file in tiny_copy.rglob("*.safetensors"):
        with file.open("r+b") as handle:  # in place, so that a mapping would show it
            handle.write(bytes(file.stat().st_size))
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[f"{part}.{name}"]), f"{part}.{name}"


def test_weights_in_one_file_load_as_well_as_in_shards(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY / "uniworld", tmp_path / "one"))
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    dit = UniWorldParts(folder)["dit"].load(FLOAT32)
    expected = UniWorldParts(TINY / "uniworld")["dit"].load(FLOAT32)
    assert all(torch.equal(a, b) for a, b in zip(dit.parameters(), expected.parameters()))


def test_shipped_models_are_opened_by_their_names() -> None:
    assert shipped_names() == ["nano", "tiny"]
    assert shipped_model("no such model") is None
    for name in shipped_names():
        assert UniWorld.from_pretrained(name).flux_folder == TINY.parent / name / "flux"


def test_a_checkpoint_takes_the_other_parts_of_a_shipped_model_by_its_name() -> None:
    model = UniWorld.from_pretrained(TINY / "uniworld", flux="tiny", siglip="tiny")
    assert (model.flux_folder, model.siglip_folder) == (TINY / "flux", TINY / "siglip")


# --- a FLUX folder's forms ------------------------------------------------------------------------------------------


def t5_tensors() -> dict[str, torch.Tensor]:
    tensors = load_file(TINY / "flux" / "text_encoder_2" / "model.safetensors")
    tensors["shared.weight"] = tensors.get("shared.weight", tensors.get("encoder.embed_tokens.weight"))
    tensors.pop("encoder.embed_tokens.weight", None)
    return tensors


def expected_t5() -> torch.Tensor:
    return T5.from_pretrained(TINY / "flux", FLOAT32).tokens(["A dog."], 6)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_t5_table_may_lie_in_the_file_once_or_twice(tiny_copy: Path, twice: bool) -> None:
    tensors = t5_tensors()
    if twice:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, tiny_copy / "flux" / "text_encoder_2" / "model.safetensors")
    t5 = T5.from_pretrained(tiny_copy / "flux", FLOAT32)
    assert t5.encoder.encoder.embed_tokens.weight is t5.encoder.shared.weight
    assert torch.equal(t5.tokens(["A dog."], 6), expected_t5())


def test_t5_in_shards_loads_as_well(tiny_copy: Path) -> None:
    folder, tensors = tiny_copy / "flux" / "text_encoder_2", t5_tensors()
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert torch.equal(T5.from_pretrained(tiny_copy / "flux", FLOAT32).tokens(["A dog."], 6), expected_t5())


def test_clip_file_with_position_ids_of_old_loads(tiny_copy: Path) -> None:
    file = tiny_copy / "flux" / "text_encoder" / "model.safetensors"
    edit_tensors(file, lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    expected = CLIP.from_pretrained(TINY / "flux", FLOAT32).pool(["A dog."])
    assert torch.equal(CLIP.from_pretrained(tiny_copy / "flux", FLOAT32).pool(["A dog."]), expected)


def test_siglip_folder_of_the_whole_model_loads_as_well_as_its_vision_half(tiny_copy: Path) -> None:
    folder = tiny_copy / "siglip"
    pictures = [Image.effect_mandelbrot((32, 20), (-2, -1, 1, 1), 50).convert("RGB")]
    vision = json.loads((folder / "config.json").read_text())
    expected = SigLIP.from_pretrained(folder, FLOAT32).features(pictures)
    vision = vision.get("vision_config", vision)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": vision, "text_config": {"hidden_size": 40}})
    )
    edit_tensors(
        folder / "model.safetensors",
        lambda t: t.update(
            {"text_model.embeddings.token_embedding.weight": torch.zeros(9, 40), "logit_scale": torch.zeros(1)}
        ),
    )
    assert torch.equal(SigLIP.from_pretrained(folder, FLOAT32).features(pictures), expected)
    (folder / "config.json").write_text(json.dumps(vision | {"model_type": "siglip_vision_model"}))
    assert torch.equal(SigLIP.from_pretrained(folder, FLOAT32).features(pictures), expected)


def renamed(file: Path, old: str, new: str) -> None:
    """Begin the names of a file's tensors otherwise, as another version of transformers saves them."""
    tensors = {re.sub(f"^{re.escape(old)}", new, name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)


def test_parts_saved_without_their_prefix_load_as_well(tiny_copy: Path) -> None:
    # transformers 5 drops it from the modules, and so from what a freshly made one saves.
    pictures = [Image.effect_mandelbrot((32, 20), (-2, -1, 1, 1), 50).convert("RGB")]
    renamed(tiny_copy / "flux" / "text_encoder" / "model.safetensors", "text_model.", "")
    renamed(tiny_copy / "siglip" / "model.safetensors", "vision_model.", "")
    clip, siglip = (
        CLIP.from_pretrained(tiny_copy / "flux", FLOAT32),
        SigLIP.from_pretrained(tiny_copy / "siglip", FLOAT32),
    )
    assert torch.equal(clip.pool(["A dog."]), CLIP.from_pretrained(TINY / "flux", FLOAT32).pool(["A dog."]))
    expected = SigLIP.from_pretrained(TINY / "siglip", FLOAT32).features(pictures)
    assert torch.equal(siglip.features(pictures), expected)
    open_copy(tiny_copy)


def test_t5_with_its_table_under_the_encoders_name_alone_loads(tiny_copy: Path) -> None:
    renamed(tiny_copy / "flux" / "text_encoder_2" / "model.safetensors", "shared.", "encoder.embed_tokens.")
    assert torch.equal(T5.from_pretrained(tiny_copy / "flux", FLOAT32).tokens(["A dog."], 6), expected_t5())


def test_qwen_under_the_names_of_transformers_own_module_loads(model: UniWorld, tiny_copy: Path) -> None:
    folder = tiny_copy / "uniworld"
    for file in folder.glob("*.safetensors"):
        renamed(file, "model.", "model.language_model.")
        renamed(file, "visual.", "model.visual.")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(
            {"weight_map": {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}}
        )
    )
    assert torch.equal(open_copy(tiny_copy).route("Paint a dog.").logits, model.route("Paint a dog.").logits)


def test_rotary_settings_under_their_name_in_transformers_5_are_read(model: UniWorld, tiny_copy: Path) -> None:
    file = tiny_copy / "uniworld" / "config.json"
    raw = json.loads(file.read_text())
    rotary = {**raw["rope_scaling"], "rope_theta": raw["rope_theta"]}
    edit_json(file, rope_scaling=..., rope_theta=..., rope_parameters=rotary)
    assert torch.equal(open_copy(tiny_copy).route("Paint a dog.").logits, model.route("Paint a dog.").logits)


@pytest.mark.parametrize("kind", ["CLIPTextModel", "T5EncoderModel", "SiglipVisionModel"])
def test_what_this_version_of_transformers_saves_loads(tiny_copy: Path, kind: str) -> None:
    import transformers

    places = {
        "CLIPTextModel": "flux/text_encoder",
        "T5EncoderModel": "flux/text_encoder_2",
        "SiglipVisionModel": "siglip",
    }
    folder = tiny_copy / places[kind]
    made = getattr(transformers, kind)
    made(made.config_class.from_pretrained(folder)).save_pretrained(folder)
    open_copy(tiny_copy)


def test_settings_that_transformers_5_saves_with_the_whole_processor_are_read(tiny_copy: Path) -> None:
    for folder in (tiny_copy / "uniworld", tiny_copy / "siglip"):
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").unlink()
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings, "processor_class": "X"}))
    assert open_copy(tiny_copy).vlm.processor.merge_size == 2


# --- the picture processor's limits -----------------------------------------------------------------------------------

WIDE = {"shortest_edge": 3136, "longest_edge": 12845056}


@pytest.mark.parametrize(
    ("limits", "side"),  # side in patches of 14 pixels, whose merged pairs the limit is rounded down to
    [
        ({"min_pixels": 3136, "max_pixels": 12845056, "size": WIDE}, 32),
        ({"min_pixels": 3136, "max_pixels": 12845056, "size": ...}, 32),
        ({"min_pixels": ..., "max_pixels": ..., "size": WIDE}, 32),
        ({"min_pixels": ..., "max_pixels": ..., "size": ...}, 32),
        ({"min_pixels": 60 * 60, "max_pixels": 60 * 60, "size": ...}, 4),
        ({"min_pixels": ..., "max_pixels": ..., "size": {"shortest_edge": 120**2, "longest_edge": 120**2}}, 8),
    ],
    ids=["wide both ways", "wide", "wide size", "none", "equal", "equal size"],
)
def test_pictures_are_seen_at_448_pixels_unless_both_limits_are_equal(
    tiny_copy: Path, limits: dict[str, Any], side: int
) -> None:
    folder = tiny_copy / "uniworld"
    edit_json(folder / "preprocessor_config.json", **limits)
    vlm = UniWorldParts(folder)["vlm"].load(FLOAT32)
    for square in (300, 460, 700):
        assert vlm.inputs(["x"], [[Image.new("RGB", (square, square))]]).grids.tolist() == [[1, side, side]]


# --- what is missing or damaged ---------------------------------------------------------------------------------------

TENSOR = "denoise_tower.denoise_projector.0.weight"

# What every part's files are, and what loads it.
PART_FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "config": ("uniworld/config.json", open_copy),
    "index": ("uniworld/model.safetensors.index.json", open_copy),
    "preprocessor": ("uniworld/preprocessor_config.json", lambda folder: open_copy(folder).vlm),
    "siglip config": ("siglip/config.json", lambda folder: open_copy(folder).siglip),
    "siglip preprocessor": ("siglip/preprocessor_config.json", lambda folder: open_copy(folder).siglip),
    "vae config": ("flux/vae/config.json", lambda folder: open_copy(folder).vae),
    "clip config": ("flux/text_encoder/config.json", lambda folder: open_copy(folder).text.clip),
    "t5 config": ("flux/text_encoder_2/config.json", lambda folder: open_copy(folder).text.t5),
    "dit's vae config": ("flux/vae/config.json", lambda folder: open_copy(folder).dit),
}


@pytest.mark.parametrize("name", [name for name in PART_FILES if name != "index"])
def test_missing_file_is_named(tiny_copy: Path, name: str) -> None:
    file, load = PART_FILES[name]
    (tiny_copy / file).unlink()
    with pytest.raises(ValueError, match="does not exist") as error:
        load(tiny_copy)
    assert str(tiny_copy / file) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", '{"a": ', "[1, 2]", "null", "\x00\x01", "version https://git-lfs"])
@pytest.mark.parametrize("name", PART_FILES)
def test_broken_json_is_named(tiny_copy: Path, name: str, content: str) -> None:
    file, load = PART_FILES[name]
    (tiny_copy / file).write_text(content)
    with pytest.raises(ValueError, match="copy the file again") as error:
        load(tiny_copy)
    assert str(tiny_copy / file) in str(error.value)


def test_broken_generation_config_is_named(tiny_copy: Path) -> None:
    (tiny_copy / "uniworld" / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json is not valid JSON"):
        _ = open_copy(tiny_copy).vlm


@pytest.mark.parametrize(
    ("folder", "load"),
    [
        ("uniworld", lambda copy: open_copy(copy).vlm),
        ("flux/tokenizer", lambda copy: open_copy(copy).text.clip),
        ("flux/tokenizer_2", lambda copy: open_copy(copy).text.t5),
    ],
    ids=["vlm", "clip", "t5"],
)
@pytest.mark.parametrize("how", ["missing", "broken"])
def test_missing_or_broken_tokenizer_is_named(tiny_copy: Path, folder: str, load: Any, how: str) -> None:
    names = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
    for file in (tiny_copy / folder / name for name in (*names, "special_tokens_map.json", "added_tokens.json")):
        if file.is_file():
            file.unlink() if how == "missing" else file.write_text("{")
    with pytest.raises(ValueError, match="tokenizer") as error:
        load(tiny_copy)
    assert str(tiny_copy / folder) in str(error.value)
    assert "again" in str(error.value)


def test_tokenizer_of_another_model_is_refused(tiny_copy: Path) -> None:
    for name in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        (tiny_copy / "uniworld" / name).unlink(missing_ok=True)
    edit_json(tiny_copy / "uniworld" / "tokenizer_config.json", added_tokens_decoder={}, additional_special_tokens=[])
    with pytest.raises(ValueError, match="tokenizer"):
        _ = open_copy(tiny_copy).vlm


def test_missing_folder_is_named(tmp_path: Path) -> None:
    for options in ({"flux": tmp_path / "no flux"}, {"siglip": tmp_path / "no siglip"}):
        with pytest.raises(ValueError, match=r"folder .*no \w+ does not exist"):
            UniWorld.from_pretrained("tiny", **options)
    with pytest.raises(ValueError, match=r"checkpoint folder .* does not exist"):
        UniWorld.from_pretrained(tmp_path / "absent")


def test_folder_without_weights_says_what_is_expected(tiny_copy: Path) -> None:
    for file in (tiny_copy / "uniworld").glob("model*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"holds no weights: expected model\.safetensors"):
        open_copy(tiny_copy)


def test_missing_shard_is_named(tiny_copy: Path) -> None:
    (tiny_copy / "uniworld" / "model-00003-of-00006.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names 6 files; missing are model-00003-of-00006\.safetensors: copy"):
        open_copy(tiny_copy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda data: b"\xff" * 16 + data[16:],
        lambda data: data + b"more",
    ],
    ids=["half", "one byte less", "five bytes", "empty", "lfs pointer", "broken header", "longer"],
)
@pytest.mark.parametrize(
    ("file", "load"),
    [
        ("uniworld/model-00004-of-00006.safetensors", open_copy),
        ("flux/vae/diffusion_pytorch_model.safetensors", lambda copy: open_copy(copy).vae),
        ("siglip/model.safetensors", lambda copy: open_copy(copy).siglip),
    ],
    ids=["checkpoint", "vae", "siglip"],
)
def test_truncated_or_damaged_weights_are_named(tiny_copy: Path, file: str, load: Any, damage: Any) -> None:
    path = tiny_copy / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="truncated or damaged") as error:
        load(tiny_copy)
    assert str(path) in str(error.value)


def test_tensor_of_another_width_names_file_tensor_and_both_shapes(tiny_copy: Path) -> None:
    file = shard_with(tiny_copy / "uniworld", TENSOR)
    edit_tensors(file, lambda t: t.update({TENSOR: torch.zeros(144, 63)}))
    with pytest.raises(ValueError, match="do not match their configuration") as error:
        open_copy(tiny_copy)
    assert f"{TENSOR} in {file.name} has shape [144, 63], expected [144, 64]" in str(error.value)
    assert str(tiny_copy / "uniworld") in str(error.value)


@pytest.mark.parametrize(
    ("file", "load", "tensor"),
    [
        ("uniworld", open_copy, "model.norm.weight"),
        ("uniworld", open_copy, "visual.patch_embed.proj.weight"),
        ("uniworld", open_copy, "lm_head.weight"),
        ("uniworld", open_copy, "denoise_tower.denoiser.x_embedder.weight"),
        ("uniworld", open_copy, "denoise_tower.siglip_projector.2.bias"),
        ("uniworld", open_copy, "denoise_tower.vae_projector.0.bias"),
        ("flux/vae", lambda copy: open_copy(copy).vae, "decoder.conv_in.weight"),
        ("flux/text_encoder_2", lambda copy: open_copy(copy).text.t5, "encoder.final_layer_norm.weight"),
    ],
)
def test_missing_and_unknown_tensors_are_named(tiny_copy: Path, file: str, load: Any, tensor: str) -> None:
    shard = shard_with(tiny_copy / file, tensor)
    edit_tensors(shard, lambda t: t.update({f"{tensor}.odd": t.pop(tensor)}))
    with pytest.raises(ValueError, match="do not match their configuration") as error:
        load(tiny_copy)
    # By its published name, with the shard where the index says that it should lie.
    home = f" (of {shard.name})" if (tiny_copy / file / "model.safetensors.index.json").is_file() else ""
    assert f"missing: {tensor}{home}" in str(error.value)
    assert f"unknown: {tensor}.odd in {shard.name}" in str(error.value)


def test_tensor_of_no_part_is_named(tiny_copy: Path) -> None:
    shard = tiny_copy / "uniworld" / "model-00001-of-00006.safetensors"
    edit_tensors(shard, lambda t: t.update({"lora.up": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"model-00001-of-00006\.safetensors holds lora\.up, which does not belong"):
        open_copy(tiny_copy)


def test_many_faults_are_counted_and_not_all_listed(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "uniworld" / "config.json", intermediate_size=128)
    with pytest.raises(ValueError, match=r"expected .*128") as error:
        open_copy(tiny_copy)
    assert len(str(error.value)) < 1500


# --- configurations of another model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value", "named"),
    [
        ("config", "model_type", "qwen2_5_vl", "model_type 'qwen2_5_vl'"),
        ("config", "model_type", ..., "model_type None"),
        ("siglip config", "model_type", "clip", "model_type 'clip'"),
        ("clip config", "model_type", "t5", "model_type 't5'"),
        ("t5 config", "model_type", "bert", "model_type 'bert'"),
        ("vae config", "_class_name", "AutoencoderTiny", "'AutoencoderTiny'"),
        ("dit's vae config", "scaling_factor", ..., "scaling_factor None"),
    ],
)
def test_configuration_of_another_model_is_named(tiny_copy: Path, name: str, key: str, value: Any, named: str) -> None:
    file, load = PART_FILES[name]
    edit_json(tiny_copy / file, **{key: value})
    with pytest.raises(ValueError, match=r"(choose|copy) (a|the)|expected a") as error:
        load(tiny_copy)
    assert str(tiny_copy / file) in str(error.value)
    assert named in str(error.value)


@pytest.mark.parametrize("key", ["denoise_tower", "vision_config", "hidden_size", "image_token_id"])
def test_configuration_without_a_key_names_it(tiny_copy: Path, key: str) -> None:
    edit_json(tiny_copy / "uniworld" / "config.json", **{key: ...})
    with pytest.raises(ValueError, match=f"config.json has no '{key}'"):
        open_copy(tiny_copy)


def test_denoiser_of_another_kind_is_refused(tiny_copy: Path) -> None:
    file = tiny_copy / "uniworld" / "config.json"
    tower = json.loads(file.read_text())["denoise_tower"] | {"denoiser_type": "sd3"}
    edit_json(file, denoise_tower=tower)
    with pytest.raises(ValueError, match="denoiser_type 'sd3'"):
        open_copy(tiny_copy)


def test_t5_of_another_width_than_the_checkpoint_is_named() -> None:
    from uniworld.uniworld_core.families.uniworld_v1.condition import join_t5

    with pytest.raises(ValueError, match="T5's tokens are 7 wide and the checkpoint's joint width is 48"):
        join_t5(torch.zeros(1, 2, 7), torch.zeros(1, 3, 48), torch.ones(1, 3, dtype=torch.bool))


def test_siglip_of_another_width_than_the_checkpoint_is_named(model: UniWorld) -> None:
    from uniworld.uniworld_core import Reference

    with pytest.raises(ValueError, match="features are 7 wide and the checkpoint takes"):
        model.encode("x", refs=[Reference(Image.new("RGB", (8, 8)), torch.zeros(3, 7))], use_t5=False)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/hostname", "sub/model.safetensors", ".."])
def test_index_that_leaves_its_folder_is_refused(tiny_copy: Path, name: str) -> None:
    save_file({TENSOR: torch.zeros(1)}, tiny_copy / "elsewhere.safetensors")
    file = tiny_copy / "uniworld" / "model.safetensors.index.json"
    weight_map = json.loads(file.read_text())["weight_map"] | {TENSOR: name}
    edit_json(file, weight_map=weight_map)
    with pytest.raises(ValueError, match=r"outside its own folder|missing are"):
        open_copy(tiny_copy)


@pytest.mark.parametrize("weight_map", [..., {}, [], None])
def test_index_without_a_map_is_named(tiny_copy: Path, weight_map: Any) -> None:
    edit_json(tiny_copy / "uniworld" / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(ValueError, match=r"index\.json has no 'weight_map'"):
        open_copy(tiny_copy)


# --- the routing head -------------------------------------------------------------------------------------------------


class Evil:
    """A pickle that makes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle", "beside tensors"])
def test_pickle_with_code_is_refused_and_not_run(tiny_copy: Path, form: str) -> None:
    file, victim = tiny_copy / "uniworld" / "task_head_final.pt", tiny_copy / "victim"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Evil(victim), protocol=2))
    else:
        content = (
            torch.load(file, weights_only=True) | {"x": Evil(victim)} if form == "beside tensors" else Evil(victim)
        )
        torch.save(content, file, _use_new_zipfile_serialization=form != "old torch")
    with pytest.raises(ValueError, match=r"task_head_final\.pt was rejected"):
        UniWorldParts(tiny_copy / "uniworld")["understanding"].load(FLOAT32)
    assert not victim.exists()


def test_the_evil_pickle_would_run_if_it_were_simply_opened(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "victim")))
    assert (tmp_path / "victim").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not a pickle"])
def test_damaged_routing_head_is_refused(tiny_copy: Path, content: bytes) -> None:
    (tiny_copy / "uniworld" / "task_head_final.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"task_head_final\.pt was rejected: it is damaged"):
        UniWorldParts(tiny_copy / "uniworld")["understanding"].load(FLOAT32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda head: head.pop("3.bias"), "holds"),
        (lambda head: head.update({"4.weight": torch.zeros(1)}), "4.weight"),
        (lambda head: head.update({"0.weight": torch.zeros(len(head["0.bias"]), 63)}), "expected"),
        (lambda head: head.update({"3.weight": torch.zeros(3, len(head["0.bias"]))}), "3.weight"),
        (lambda head: head.update({"3.bias": 1.0}), "'3.bias'"),
    ],
    ids=["a tensor less", "a tensor more", "another width", "three answers", "a number"],
)
def test_routing_head_of_another_form_is_named(tiny_copy: Path, change: Any, named: str) -> None:
    file = tiny_copy / "uniworld" / "task_head_final.pt"
    head = dict(torch.load(file, weights_only=True))
    change(head)
    torch.save(head, file)
    with pytest.raises(ValueError, match=r"task_head_final\.pt") as error:
        UniWorldParts(tiny_copy / "uniworld")["understanding"].load(FLOAT32)
    assert named in str(error.value)


def test_list_in_place_of_the_routing_head_is_named(tiny_copy: Path) -> None:
    torch.save([torch.zeros(2)], tiny_copy / "uniworld" / "task_head_final.pt")
    with pytest.raises(ValueError, match="holds list"):
        UniWorldParts(tiny_copy / "uniworld")["understanding"].load(FLOAT32)


def test_a_missing_routing_head_affects_only_route(tiny_copy: Path) -> None:
    (tiny_copy / "uniworld" / "task_head_final.pt").unlink()
    model = open_copy(tiny_copy)
    assert model.encode("A dog.", use_t5=False).tokens.shape[0] == 1
    assert isinstance(model.understand("What?", max_new_tokens=2), str)
    with pytest.raises(ValueError, match=r"no task_head_final\.pt"):
        model.route("A dog.")


def test_shipped_shards_are_float32_as_published() -> None:
    for file in (TINY / "uniworld").glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as shard:
            assert {shard.get_tensor(name).dtype for name in shard.keys()} == {FLOAT32}  # noqa: SIM118


# --- all is found when the model is opened, before a weight is read ---------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda tiny: truncate(tiny / "flux/vae/diffusion_pytorch_model.safetensors"), "diffusion_pytorch_model"),
        (lambda tiny: truncate(tiny / "flux/text_encoder/model.safetensors"), "text_encoder"),
        (lambda tiny: (tiny / "flux/text_encoder_2/model.safetensors").unlink(), "text_encoder_2"),
        (lambda tiny: (tiny / "flux/tokenizer_2/tokenizer.json").write_text("{"), "tokenizer_2"),
        (lambda tiny: truncate(tiny / "siglip/model.safetensors"), "siglip"),
        (lambda tiny: (tiny / "siglip/preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda tiny: truncate(tiny / "uniworld/task_head_final.pt"), "task_head_final.pt"),
        (lambda tiny: (tiny / "uniworld/tokenizer.json").write_text("{"), "tokenizer"),
        (lambda tiny: shutil.rmtree(tiny / "flux/vae"), "vae"),
    ],
)
def test_a_damaged_file_of_any_folder_is_found_when_the_model_is_opened(
    tiny_copy: Path, damage: Any, named: str
) -> None:
    damage(tiny_copy)
    with pytest.raises(ValueError, match=named):
        open_copy(tiny_copy)


def test_a_flux_folder_without_t5_is_enough_to_paint_without_it(tiny_copy: Path) -> None:
    shutil.rmtree(tiny_copy / "flux" / "text_encoder_2")
    model = open_copy(tiny_copy)
    assert model.encode("A red circle.", use_t5=False).tokens.shape[0] == 1
    with pytest.raises(ValueError, match="text_encoder_2"):
        model.encode("A red circle.")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_config", []),
        ("num_attention_heads", 0),
        ("hidden_size", None),
        ("rope_scaling", "x"),
        ("denoise_tower", 5),
        ("vision_end_token_id", "x"),
    ],
)
def test_a_damaged_value_in_the_configuration_names_the_file(tiny_copy: Path, key: str, value: Any) -> None:
    edit_json(tiny_copy / "uniworld" / "config.json", **{key: value})
    with pytest.raises(ValueError, match=r"config\.json"):
        open_copy(tiny_copy)


@pytest.mark.parametrize(("key", "value"), [("block_out_channels", "x"), ("scaling_factor", "abc")])
def test_a_damaged_value_in_the_vae_configuration_names_the_file(tiny_copy: Path, key: str, value: Any) -> None:
    edit_json(tiny_copy / "flux" / "vae" / "config.json", **{key: value})
    with pytest.raises(ValueError, match=r"vae.config\.json"):
        open_copy(tiny_copy)


def test_whole_numbers_where_weights_belong_are_named(tiny_copy: Path) -> None:
    shard = shard_with(tiny_copy / "uniworld", "lm_head.weight")
    edit_tensors(shard, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}))
    with pytest.raises(
        ValueError, match=r"lm_head\.weight is stored as I8 and its scale lm_head\.weight_scale is missing"
    ):
        open_copy(tiny_copy)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"dtype": torch.int8}, "dtype"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "x"}, "'x'"),
    ],
)
def test_a_dtype_or_device_that_holds_no_model_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        UniWorld.from_pretrained("tiny", **options)


def test_a_vae_may_bring_its_own_colors_for_previews(tiny_copy: Path) -> None:
    rows = [[0.0, 0.0, 0.0] for _ in range(17)]
    rows[3][1], rows[16][2] = 1.0, 1.0
    colors_file(tiny_copy).write_text(json.dumps({"layers": [rows]}))
    VAE.from_pretrained(tiny_copy / "flux", FLOAT32)
    latent = torch.zeros(16, 2, 2)
    latent[3] = -1.0
    shown = preview(latent, side=2, rgb=read_latent_format(tiny_copy / "flux").rgb)
    assert shown.getpixel((0, 0)) == (127, 0, 255)
    assert preview(latent, FLUX_LATENTS.rgb, side=2).getpixel((0, 0)) != (127, 0, 255)


def test_colors_of_several_layers_have_relus_between_them(tiny_copy: Path) -> None:
    first = [[0.0, 0.0] for _ in range(17)]
    first[3] = [1.0, -1.0]
    colors_file(tiny_copy).write_text(json.dumps({"layers": [first, [[1, 0, 0], [0, 1, 0], [-1, -1, -1]]]}))
    latent = torch.zeros(16, 1, 2)
    latent[3] = torch.tensor([2.0, -2.0])
    shown = preview(latent, side=2, rgb=read_latent_format(tiny_copy / "flux").rgb)
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 255, 0)]


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [[]],
        [[[0, 0, 0]] * 16],
        [[[0, 0]] * 17],
        [[[0, 0, "red"]] * 17],
        [[[0]] + [[0, 0, 0]] * 16],
        [[[0, 0, 0]] * 17, [[0, 0, 0]] * 3],
        [[[0, 0, 1e9]] * 17],
        [0] * 17,
        5,
        None,
    ],
)
def test_invalid_preview_colors_are_refused(tiny_copy: Path, layers: object) -> None:
    colors_file(tiny_copy).write_text(json.dumps({"layers": layers}))
    with pytest.raises(ValueError, match=r"latent_rgb\.json must map 16 channels to three"):
        read_latent_format(tiny_copy / "flux")


def colors_file(models: Path) -> Path:
    return models / "flux" / "vae" / "latent_rgb.json"
