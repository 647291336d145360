"""The model's nodes over the plain host and the tiny checkpoint."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, host
from uniworld.nodes.pack.conditioning import conditioning_of, to_condition
from uniworld.nodes.pack.folders import companion, model_choices, model_folder
from uniworld.nodes.pack.parts import HeldPart, torch_dtype
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.backbones import block_cache
from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS
from uniworld.uniworld_core.backbones.flux_vae import read_native_side
from uniworld.uniworld_core.images.pictures import to_image
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER

DOCS = Path(__file__).parents[3] / "nodes" / "web" / "docs"
TINY = SHIPPED_FOLDER / "tiny"
PROMPT = "Replace the blue square with a green triangle."


def run(node: str, **inputs: Any) -> Any:
    """Run a node of the given class and return its outputs."""
    made = NODE_CLASS_MAPPINGS[node]()
    return getattr(made, made.FUNCTION)(**inputs)


class Recorder:
    """A progress hook that records its calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, Any]] = []

    def __call__(self, value: int, total: int, preview: Any) -> None:
        self.seen.append((value, total, preview))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def here(recorder: Recorder) -> Iterator[host.PlainHost]:
    """Install a plain host without user models for one test."""
    installed = host.PlainHost(progress_hook=recorder)
    host.install(installed)
    yield installed
    host.install(None)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    host.install(host.PlainHost())
    names = NODE_CLASS_MAPPINGS["UniWorldLoader"].RETURN_NAMES
    loaded = run(
        "UniWorldLoader",
        checkpoint="tiny",
        flux="tiny",
        siglip="tiny",
        dtype="float32",
        device=host.current().devices()[0],
    )
    return dict(zip(names, loaded))


@pytest.fixture(scope="module")
def core() -> UniWorld:
    return UniWorld.from_pretrained("tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    made = Image.new("RGB", (60, 40), (30, 40, 220))
    made.paste((250, 240, 10), (10, 10, 30, 30))
    return made


@pytest.fixture(scope="module")
def image(picture: Image.Image) -> torch.Tensor:
    return to_image([picture])


@pytest.fixture
def conditioning(parts: dict[str, Any]) -> Any:
    return run("UniWorldCondition", vlm=parts["vlm"], prompt=PROMPT)[0]


def latent(batch: int = 1, h: int = 6, w: int = 8, value: float = 0.0) -> dict[str, Any]:
    return {"samples": torch.full((batch, 16, h, w), value)}


def sample(parts: dict[str, Any], conditioning: Any, samples: dict[str, Any], **settings: Any) -> torch.Tensor:
    defaults = {"seed": 5, "steps": 2, "guidance": 3.5, "denoise": 1.0}
    inputs = {"dit": parts["dit"], "conditioning": conditioning, "latent": samples}
    return run("UniWorldSampler", **inputs, **defaults | settings)[0]["samples"]


# --- descriptions and help pages --------------------------------------------------------------------------------------

each_node = pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)


def inputs_of(name: str) -> dict[str, Any]:
    groups = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    return groups.get("required", {}) | groups.get("optional", {})


@each_node
def test_every_input_and_output_has_a_tooltip(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    for key, (_, *options) in inputs_of(name).items():
        assert options, key
        assert options[0]["tooltip"].endswith((".", "?", ")")), key
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    assert all(tooltip.endswith(".") for tooltip in node.OUTPUT_TOOLTIPS)


@each_node
def test_every_node_has_a_name_a_description_and_a_help_page(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    assert name.startswith("UniWorld")
    assert NODE_DISPLAY_NAME_MAPPINGS[name] == node.DISPLAY_NAME
    assert node.DESCRIPTION.endswith(".")
    assert node.CATEGORY.split("/")[0] == "UniWorld"
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    title, _, body = page.partition("\n")
    assert title == f"# {node.DISPLAY_NAME}"
    assert len(body.split()) > 10


def test_no_help_page_is_of_a_node_that_is_gone() -> None:
    assert {page.stem for page in DOCS.glob("*.md")} == set(NODE_CLASS_MAPPINGS)


@each_node
def test_every_function_takes_the_inputs_that_are_declared(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    groups = node.INPUT_TYPES()
    taken = dict(inspect.signature(getattr(node, node.FUNCTION)).parameters)
    taken.pop("self")
    declared = {key for group in groups.values() for key in group}
    assert set(taken) == declared
    for key in groups.get("optional", {}):
        assert taken[key].default is not inspect.Parameter.empty, key


@each_node
def test_every_default_lies_in_its_own_range(name: str) -> None:
    for key, (kind, options) in inputs_of(name).items():
        if isinstance(kind, list):
            assert kind, key
            assert options.get("default", kind[0]) in kind
        elif kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], key


def test_display_names_are_told_apart() -> None:
    assert len(set(NODE_DISPLAY_NAME_MAPPINGS.values())) == len(NODE_CLASS_MAPPINGS)


# --- loader -----------------------------------------------------------------------------------------------------------


def test_lists_show_the_users_folders_first_and_then_the_shipped(here: host.PlainHost, tmp_path: Path) -> None:
    for root, names in (("first", ("b", "a")), ("second", ("z", "a"))):
        for name in names:
            shutil.copytree(TINY / "uniworld", tmp_path / root / "uniworld" / name)
        (tmp_path / root / "uniworld" / "no model").mkdir()
        here.models.append(tmp_path / root)
    shutil.copytree(TINY / "flux", tmp_path / "second" / "diffusers" / "FLUX.1-dev")
    shutil.copytree(TINY / "siglip", tmp_path / "second" / "siglip" / "siglip2")
    lists = {key: spec[0] for key, spec in inputs_of("UniWorldLoader").items()}
    assert lists["checkpoint"] == ["a", "b", "z", "nano", "tiny"]
    assert lists["flux"] == ["auto", "FLUX.1-dev", "nano", "tiny"]
    assert lists["siglip"] == ["auto", "siglip2", "nano", "tiny"]
    # If two folders have the same name, the first one is used; a user's "tiny" takes precedence over the shipped one.
    assert model_folder("uniworld", "a") == tmp_path / "first" / "uniworld" / "a"
    shutil.copytree(TINY / "uniworld", tmp_path / "first" / "uniworld" / "tiny")
    assert model_folder("uniworld", "tiny") == tmp_path / "first" / "uniworld" / "tiny"
    assert list(model_choices("uniworld")) == ["a", "b", "tiny", "z", "nano"]


def test_lists_hold_the_shipped_models_where_no_folder_exists(here: host.PlainHost, tmp_path: Path) -> None:
    here.models.append(tmp_path / "nowhere")
    assert list(model_choices("uniworld")) == ["nano", "tiny"]


@pytest.mark.parametrize(
    "name", ["../uniworld/tiny", "/etc", "", ".", "..", "Tiny", "a/../tiny", str(TINY / "uniworld")]
)
@pytest.mark.parametrize("key", ["checkpoint", "flux", "siglip"])
def test_name_that_is_not_in_the_list_is_refused(key: str, name: str) -> None:
    chosen = {"checkpoint": "tiny", "flux": "tiny", "siglip": "tiny"} | {key: name}
    with pytest.raises(ValueError, match=r"There is no model .*\. Choose one of nano, tiny"):
        run("UniWorldLoader", **chosen, dtype="auto", device="cpu")


def test_loader_checks_files_at_once_and_reads_none(here: host.PlainHost, tmp_path: Path) -> None:
    here.models.append(tmp_path)
    shutil.copytree(TINY / "uniworld", tmp_path / "uniworld" / "damaged")
    (tmp_path / "uniworld" / "damaged" / "model-00002-of-00006.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00006\.safetensors"):
        run("UniWorldLoader", checkpoint="damaged", flux="tiny", siglip="tiny", dtype="auto", device="cpu")
    loaded = run("UniWorldLoader", checkpoint="tiny", flux="tiny", siglip="tiny", dtype="auto", device="cpu")
    held = [part for part in loaded[0].held.values() if isinstance(part, HeldPart)]
    assert {part.name for part in held} == {"understanding", "siglip", "dit", "vae", "clip", "t5"}
    assert all(part._managed is None for part in held)


AUTO = {"flux": "auto", "siglip": "auto", "dtype": "auto", "device": "cpu"}


def keep(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(TINY / ("flux" if folder.name == "diffusers" else "siglip"), folder / name)


def test_a_freshly_dropped_loader_opens_what_ships() -> None:
    fresh = {name: options[0].get("default", kind[0]) for name, (kind, *options) in inputs_of("UniWorldLoader").items()}
    defaults = {"device": "default", "storage": "auto", "offload": "auto", "compile": "off", "attention": "auto"}
    assert fresh == {"checkpoint": "nano", **AUTO, **defaults}
    assert run("UniWorldLoader", **fresh)[2].facts.native_side == 128


def test_auto_takes_what_ships_beside_the_checkpoint_though_the_user_has_a_folder(
    here: host.PlainHost, tmp_path: Path
) -> None:
    here.models.append(tmp_path)
    keep(tmp_path / "diffusers", "FLUX.1-dev")
    keep(tmp_path / "siglip", "siglip2")
    assert companion("diffusers", "auto", "nano") == companion("siglip", "auto", "nano") == "nano"
    assert companion("diffusers", "FLUX.1-dev", "nano") == "FLUX.1-dev"


def test_auto_takes_the_users_only_folder_or_the_one_of_the_checkpoints_name(
    here: host.PlainHost, tmp_path: Path
) -> None:
    here.models.append(tmp_path)
    shutil.copytree(TINY / "uniworld", tmp_path / "uniworld" / "Mine")
    keep(tmp_path / "diffusers", "FLUX.1-dev")
    keep(tmp_path / "siglip", "a", "Mine")
    assert companion("diffusers", "auto", "Mine") == "FLUX.1-dev"
    assert companion("siglip", "auto", "Mine") == "Mine"
    assert run("UniWorldLoader", checkpoint="Mine", **AUTO)[2].facts.native_side == 64


@pytest.mark.parametrize(
    ("names", "said"), [((), "siglip2-so400m-patch16-512 there"), (("a", "b"), "a, b: choose one")]
)
def test_auto_with_no_folder_or_several_names_the_choices(
    here: host.PlainHost, tmp_path: Path, names: tuple[str, ...], said: str
) -> None:
    here.models.append(tmp_path)
    keep(tmp_path / "siglip", *names)
    shutil.copytree(TINY / "uniworld", tmp_path / "uniworld" / "Mine")
    with pytest.raises(ValueError, match=rf"'siglip' is auto, but .*{said}"):
        run("UniWorldLoader", checkpoint="Mine", **AUTO | {"flux": "tiny"})


@pytest.mark.parametrize("size", [0, "128", True, 10**6, 12.5, [128]])
def test_a_native_size_that_is_none_is_refused(tmp_path: Path, size: Any) -> None:
    config = tmp_path / "vae" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"sample_size": size}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json has sample_size .*, expected a whole number"):
        read_native_side(tmp_path)


def test_a_folder_without_a_native_size_is_flux_own(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    for text in ("{}", '{"sample_size": 32}'):  # the latter is diffusers' default
        (tmp_path / "vae" / "config.json").write_text(text, encoding="utf-8")
        assert read_native_side(tmp_path) == 1024


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cpu", torch.float16),
    ],
)
def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu(name: str, device: str, dtype: torch.dtype) -> None:
    assert torch_dtype(name, torch.device(device)) == dtype


# --- a complete edit --------------------------------------------------------------------------------------------------


def test_edit_goes_all_the_way_and_paints_what_the_core_paints(
    parts: dict[str, Any], core: UniWorld, picture: Image.Image, image: torch.Tensor
) -> None:
    (refs,) = run("UniWorldReference", image=image, siglip=parts["siglip"])
    conditioning, _ = run(
        "UniWorldCondition", vlm=parts["vlm"], prompt=PROMPT, references=refs, text=parts["text"], t5_length=16
    )
    empty, width, height = run(
        "UniWorldEmptyLatent",
        width=1,
        height=1,
        area_side=64,
        ratios="any_11ratio",
        batch_size=1,
        references=refs,
    )
    assert empty["samples"].shape == (1, 16, height // 8, width // 8)
    assert width > height
    (sigmas,) = run("UniWorldFlowScheduler", dit=parts["dit"], latent=empty, steps=2, denoise=1.0)
    settings = {"seed": 7, "steps": 28, "guidance": 2.5, "denoise": 1.0, "sigmas": sigmas}
    (painted,) = run("UniWorldSampler", dit=parts["dit"], conditioning=conditioning, latent=empty, **settings)
    (decoded,) = run("UniWorldVAEDecode", vae=parts["vae"], latent=painted)
    assert decoded.shape == (1, height, width, 3)
    assert decoded.dtype == torch.float32
    assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1

    condition = core.encode(PROMPT, refs=core.reference([picture]), t5_length=16)
    expected = core.sample(condition, height, width, steps=2, guidance=2.5, seed=7)
    torch.testing.assert_close(conditioning[0][0], condition.tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(painted["samples"], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(decoded, core.decode(expected), rtol=0, atol=1e-4)


def test_conditioning_has_the_native_form(parts: dict[str, Any], core: UniWorld) -> None:
    conditioning, _ = run("UniWorldCondition", vlm=parts["vlm"], prompt=PROMPT, text=parts["text"], guidance=4.0)
    ((tokens, extra),) = conditioning
    assert isinstance(conditioning[0], list)
    assert tokens.device.type == "cpu"
    assert tokens.ndim == 3
    assert set(extra) == {"pooled_output", "guidance", "uniworld_family"}
    assert extra["uniworld_family"] == "UniWorld-V1"
    assert extra["guidance"] == 4.0
    assert isinstance(extra["guidance"], float)
    torch.testing.assert_close(extra["pooled_output"], core.text.clip.pool([PROMPT]), rtol=0, atol=1e-5)


def test_a_conditioning_carries_what_other_families_paint_by() -> None:
    negative = Condition(torch.full((1, 2, 4), 2.0))
    mask, latent = torch.tensor([[False, True, True]]), torch.ones(1, 16, 4, 4)
    whole = Condition(torch.zeros(1, 3, 4), torch.ones(1, 5), mask, (latent,), negative)
    ((tokens, extra),) = conditioning_of(whole, 2.5, FLUX_LATENTS)
    assert extra["guidance"] == 2.5
    # ComfyUI's samplers take references on the side of the VAE.
    assert torch.allclose(FLUX_LATENTS.to_model(extra["reference_latents"][0]), latent)
    # As ComfyUI's nodes do: new tokens, and a copy of the other entries.
    again = to_condition([[tokens + 1, dict(extra)]], FLUX_LATENTS)
    assert torch.equal(again.tokens, torch.ones(1, 3, 4))
    assert torch.equal(again.pooled, whole.pooled)
    assert torch.equal(again.mask, mask)
    assert torch.equal(again.references[0], latent)
    assert torch.equal(again.negative.tokens, negative.tokens)
    plain = Condition(whole.tokens, whole.pooled)
    made = conditioning_of(plain, 1.0, FLUX_LATENTS)
    assert set(made[0][1]) == {"pooled_output", "guidance"}
    assert to_condition(made, FLUX_LATENTS).negative is None
    # ReferenceLatent of ComfyUI appends a VAE latent, also to a conditioning of its own text encoders.
    z = torch.full((1, 16, 6, 4), 0.5)
    for first, carried in ((extra, 1), (made[0][1], 0)):
        appended = dict(first) | {"reference_latents": [*first.get("reference_latents", []), z]}
        references = to_condition([[tokens, appended]], FLUX_LATENTS).references
        assert len(references) == carried + 1
        assert torch.equal(references[-1], FLUX_LATENTS.to_model(z))
        assert all(torch.equal(one, latent) for one in references[:-1])


def test_condition_without_text_takes_clips_empty_prompt_and_no_t5(parts: dict[str, Any], core: UniWorld) -> None:
    ((tokens, extra),) = run("UniWorldCondition", vlm=parts["vlm"], prompt=PROMPT)[0]
    expected = core.encode(PROMPT, use_t5=False)
    torch.testing.assert_close(tokens, expected.tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(extra["pooled_output"], expected.pooled, rtol=0, atol=1e-5)


def test_references_are_chained_in_order(parts: dict[str, Any], image: torch.Tensor) -> None:
    batch = torch.cat([image, 1 - image])
    (first,) = run("UniWorldReference", image=batch, siglip=parts["siglip"])
    (all_of_them,) = run("UniWorldReference", image=image[:, :20], references=first)
    assert len(first) == 2
    assert all_of_them[:2] == first
    assert [ref.picture.size for ref in all_of_them] == [(60, 40), (60, 40), (60, 20)]
    assert [ref.features is None for ref in all_of_them] == [False, False, True]


class VisionOutput:
    """Like ComfyUI's CLIP_VISION_OUTPUT, whose fields can be indexed."""

    def __init__(self, features: torch.Tensor) -> None:
        self.last_hidden_state = features

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)


def test_native_vision_features_give_the_same_reference(
    parts: dict[str, Any], core: UniWorld, picture: Image.Image, image: torch.Tensor
) -> None:
    (ours,) = run("UniWorldReference", image=image, siglip=parts["siglip"])
    native = VisionOutput(core.siglip.features([picture]))
    (theirs,) = run("UniWorldReference", image=image, clip_vision_output=native)
    assert theirs[0].picture.tobytes() == ours[0].picture.tobytes()
    torch.testing.assert_close(theirs[0].features, ours[0].features, rtol=0, atol=1e-5)
    tokens = [run("UniWorldCondition", vlm=parts["vlm"], prompt=PROMPT, references=r)[0][0][0] for r in (ours, theirs)]
    torch.testing.assert_close(*tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 16, 40), (16, 40)])
def test_native_vision_features_of_other_pictures_are_an_error(image: torch.Tensor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="There are 1 pictures and vision features of shape"):
        run("UniWorldReference", image=image, clip_vision_output=VisionOutput(torch.zeros(shape)))


# --- latents and noise levels -----------------------------------------------------------------------------------------


def test_latent_takes_the_aspect_of_references_then_image_then_numbers(image: torch.Tensor) -> None:
    settings = {"width": 100, "height": 200, "area_side": 1024, "ratios": "any_11ratio", "batch_size": 3}
    (refs,) = run("UniWorldReference", image=torch.zeros(1, 50, 50, 3))
    by_numbers, by_image = (
        run("UniWorldEmptyLatent", **settings),
        run("UniWorldEmptyLatent", **settings, image=image),
    )
    by_references = run("UniWorldEmptyLatent", **settings, image=image, references=refs)
    assert by_numbers[0]["samples"].shape == (3, 16, by_numbers[2] // 8, by_numbers[1] // 8)
    assert by_numbers[1] / by_numbers[2] == pytest.approx(9 / 16)
    assert by_image[1] / by_image[2] == pytest.approx(3 / 2)
    assert by_references[1:] == (1024, 1024)
    assert not by_numbers[0]["samples"].any()


def test_area_side_0_is_what_the_model_was_made_for(parts: dict[str, Any]) -> None:
    settings = {"width": 1, "height": 1, "ratios": "any_11ratio", "batch_size": 1}
    assert run("UniWorldEmptyLatent", **settings, area_side=0, dit=parts["dit"])[1:] == (64, 64)
    assert run("UniWorldEmptyLatent", **settings, area_side=0)[1:] == (1024, 1024)
    assert run("UniWorldEmptyLatent", **settings, area_side=256, dit=parts["dit"])[1:] == (256, 256)


@pytest.mark.parametrize(("side", "warned"), [(64, 0), (160, 0), (192, 1)])
def test_a_latent_far_larger_than_the_model_was_made_for_is_warned_of(
    here: host.PlainHost, parts: dict[str, Any], conditioning: Any, side: int, warned: int
) -> None:
    said: list[str] = []
    here.warning_hook = said.append
    sample(parts, conditioning, latent(h=side // 8, w=side // 8), steps=1)
    assert len(said) == warned
    assert all("192x192 pixels, but the native size of this model is about 64x64: connect dit" in one for one in said)


def test_scheduler_shifts_by_the_packed_tokens(parts: dict[str, Any]) -> None:
    from uniworld.uniworld_core.backbones.flux_latents import FLUX_SHIFT
    from uniworld.uniworld_core.sampling import flow

    (sigmas,) = run("UniWorldFlowScheduler", dit=parts["dit"], latent=latent(h=128, w=128), steps=4, denoise=1.0)
    assert torch.equal(sigmas, flow.schedule(4, 4096, FLUX_SHIFT))
    (half,) = run("UniWorldFlowScheduler", dit=parts["dit"], latent=latent(h=128, w=128), steps=4, denoise=0.5)
    assert len(half) == 5
    assert half[0] < 1


def test_encoding_undoes_the_latent_shape(parts: dict[str, Any], core: UniWorld) -> None:
    picture = torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    (encoded,) = run("UniWorldVAEEncode", vae=parts["vae"], image=picture)
    assert encoded["samples"].shape == (2, 16, 4, 6)
    torch.testing.assert_close(encoded["samples"], core.vae.encode(picture), rtol=0, atol=1e-5)


# --- sampler ----------------------------------------------------------------------------------------------------------


def test_sampler_reports_every_step_with_a_preview(
    parts: dict[str, Any], conditioning: Any, recorder: Recorder
) -> None:
    sample(parts, conditioning, latent(), steps=3)
    assert [(value, total) for value, total, _ in recorder.seen] == [(1, 3), (2, 3), (3, 3)]
    for *_, preview in recorder.seen:
        assert isinstance(preview, Image.Image)
        assert preview.mode == "RGB"
        assert preview.width / preview.height == pytest.approx(8 / 6, abs=0.02)
        assert max(preview.size) <= 512


def test_interrupt_stops_the_sampler_within_a_step(
    parts: dict[str, Any], conditioning: Any, here: host.PlainHost
) -> None:
    seen = []

    def stop(value: int, total: int, preview: Any) -> None:
        seen.append(value)
        if value == 2:
            here.interrupted.set()

    here.progress_hook = stop
    with pytest.raises(host.Interrupted):
        sample(parts, conditioning, latent(), steps=9)
    assert seen == [1, 2]


def test_interrupt_stops_an_answer_within_a_token(parts: dict[str, Any], here: host.PlainHost) -> None:
    seen = []

    def stop(value: int, total: int, preview: Any) -> None:
        seen.append((value, total))
        here.interrupted.set()

    here.progress_hook = stop
    with pytest.raises(host.Interrupted):
        run("UniWorldUnderstand", vlm=parts["vlm"], prompt="What?", max_new_tokens=9, temperature=0.0, seed=0)
    assert seen == [(1, 9)]


def test_interrupt_stops_before_a_part_is_used(parts: dict[str, Any], here: host.PlainHost) -> None:
    here.interrupted.set()
    with pytest.raises(host.Interrupted):
        run("UniWorldVAEDecode", vae=parts["vae"], latent=latent())


def test_item_of_a_batch_takes_its_own_seed(parts: dict[str, Any], conditioning: Any) -> None:
    batch = sample(parts, conditioning, latent(batch=3), seed=2**64 - 2)
    for index, seed in enumerate((2**64 - 2, 2**64 - 1, 0)):
        alone = sample(parts, conditioning, latent(), seed=seed)
        torch.testing.assert_close(batch[index : index + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("cache", "solver"), [("strong", "euler"), ("off", "dpm2")])
def test_cache_and_solver_are_the_cores(
    cache: str,
    solver: str,
    parts: dict[str, Any],
    conditioning: Any,
    core: UniWorld,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Above the change of tiny's first block from step to step.
    monkeypatch.setitem(block_cache._THRESHOLDS, "strong", 10.0)
    settings: dict[str, Any] = {"steps": 4, "cache": cache, "solver": solver}
    painted = sample(parts, conditioning, latent(), **settings)
    assert [value for value, *_ in recorder.seen] == [1, 2, 3, 4]
    assert all(isinstance(preview, Image.Image) for *_, preview in recorder.seen)
    wanted = core.sample(to_condition(conditioning, FLUX_LATENTS), 48, 64, seed=5, **settings)
    torch.testing.assert_close(painted, wanted, rtol=0, atol=1e-5)
    assert torch.equal(painted, sample(parts, conditioning, latent(), **settings))
    assert not torch.equal(painted, sample(parts, conditioning, latent(), steps=4))


def test_noise_mask_keeps_what_is_outside_it(parts: dict[str, Any], conditioning: Any) -> None:
    start = latent(value=0.3)
    mask = torch.zeros(1, 48, 64)
    mask[:, :24] = 1
    painted = sample(parts, conditioning, start | {"noise_mask": mask}, steps=3)
    torch.testing.assert_close(painted[:, :, 4:], start["samples"][:, :, 4:], rtol=0, atol=1e-4)
    assert float((painted[:, :, :2] - 0.3).abs().mean()) > 0.1


@pytest.mark.parametrize("shape", [(48, 64), (1, 48, 64), (2, 48, 64), (1, 1, 6, 8)])
def test_noise_mask_of_every_form_is_taken(parts: dict[str, Any], conditioning: Any, shape: tuple[int, ...]) -> None:
    start = latent(batch=2, value=0.3) | {"noise_mask": torch.zeros(shape)}
    torch.testing.assert_close(sample(parts, conditioning, start), start["samples"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("masks", "kept"), [(2, [True, False, True]), (4, [True, False, True])])
def test_fewer_noise_masks_are_repeated_and_more_are_left(
    parts: dict[str, Any], conditioning: Any, masks: int, kept: list[bool]
) -> None:
    mask = (torch.arange(masks) % 2).float().reshape(-1, 1, 1).expand(-1, 48, 64)
    painted = sample(parts, conditioning, latent(batch=3, value=0.3) | {"noise_mask": mask})
    assert [bool((item - 0.3).abs().max() < 1e-4) for item in painted] == kept


def test_what_else_a_latent_carries_is_kept(parts: dict[str, Any], conditioning: Any) -> None:
    made = run(
        "UniWorldSampler",
        dit=parts["dit"],
        conditioning=conditioning,
        latent=latent() | {"batch_index": [4]},
        seed=1,
        steps=1,
        guidance=3.5,
        denoise=1.0,
    )[0]
    assert made["batch_index"] == [4]


def test_less_denoise_stays_nearer_to_the_latent(parts: dict[str, Any], conditioning: Any) -> None:
    start = latent(value=0.3)
    little, much = ((sample(parts, conditioning, start, denoise=denoise) - 0.3).abs().mean() for denoise in (0.05, 1.0))
    assert float(little) < 0.5 * float(much)


# --- understand and route ---------------------------------------------------------------------------------------------


def test_understand_answers_as_the_core_does(
    parts: dict[str, Any], core: UniWorld, image: torch.Tensor, picture: Image.Image, recorder: Recorder
) -> None:
    (refs,) = run("UniWorldReference", image=image)
    settings = {"max_new_tokens": 5, "temperature": 0.0, "seed": 0}
    answer, _ = run("UniWorldUnderstand", vlm=parts["vlm"], prompt="What is this?", references=refs, **settings)
    expected = core.understand("What is this?", refs=core.reference([picture], use_siglip=False), max_new_tokens=5)
    assert answer == expected
    assert [total for _, total, _ in recorder.seen] == [5] * len(recorder.seen)


def test_route_says_what_the_core_says_and_opens_one_way(parts: dict[str, Any], core: UniWorld) -> None:
    paint, probability, to_paint, to_answer = run("UniWorldRoute", vlm=parts["vlm"], prompt=PROMPT)
    expected = core.route(PROMPT)
    assert paint is bool(expected.paint[0])
    assert probability == pytest.approx(float(expected.probabilities[0, 1]), abs=1e-5)
    chosen, other = (to_paint, to_answer) if paint else (to_answer, to_paint)
    assert chosen == PROMPT
    assert isinstance(other, type(host.current().block()))


# --- error messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt_is_one_sentence(parts: dict[str, Any], prompt: str) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        run("UniWorldCondition", vlm=parts["vlm"], prompt=prompt)
    with pytest.raises(ValueError, match="prompt is empty"):
        run("UniWorldRoute", vlm=parts["vlm"], prompt=prompt)
    with pytest.raises(ValueError, match="prompt is empty"):
        run("UniWorldUnderstand", vlm=parts["vlm"], prompt=prompt, max_new_tokens=2, temperature=0.0, seed=0)


@pytest.mark.parametrize("shape", [(1, 16, 5, 8), (1, 16, 6, 7), (1, 4, 6, 8), (1, 16, 1, 6, 8)])
def test_latent_of_another_model_is_one_sentence(
    parts: dict[str, Any], conditioning: Any, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="The latent has shape"):
        sample(parts, conditioning, {"samples": torch.zeros(shape)})


@pytest.mark.parametrize("shape", [(1, 4, 6, 8), (16, 6, 8)])
def test_decoding_a_latent_of_another_model_is_one_sentence(parts: dict[str, Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"The latent has shape .* this VAE takes \(batch, 16"):
        run("UniWorldVAEDecode", vae=parts["vae"], latent={"samples": torch.zeros(shape)})


@pytest.mark.parametrize(("shape", "named"), [((1, 40, 48, 3), "height is 40"), ((1, 48, 48, 4), "has shape")])
def test_encoding_a_picture_that_does_not_fit_is_one_sentence(
    parts: dict[str, Any], shape: tuple[int, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        run("UniWorldVAEEncode", vae=parts["vae"], image=torch.zeros(shape))


def test_combined_conditionings_are_one_sentence(parts: dict[str, Any], conditioning: Any) -> None:
    with pytest.raises(ValueError, match="conditioning has 2 entries"):
        sample(parts, conditioning * 2, latent())


def test_conditioning_without_a_pooled_prompt_is_one_sentence(parts: dict[str, Any], conditioning: Any) -> None:
    with pytest.raises(ValueError, match="no pooled prompt"):
        sample(parts, [[conditioning[0][0], {}]], latent())


def test_conditioning_of_another_number_of_items_is_one_sentence(parts: dict[str, Any], conditioning: Any) -> None:
    tokens, extra = conditioning[0]
    two = [[tokens.repeat(2, 1, 1), extra | {"pooled_output": extra["pooled_output"].repeat(2, 1)}]]
    with pytest.raises(ValueError, match="2 items and the batch 3"):
        sample(parts, two, latent(batch=3))


@pytest.mark.parametrize(("tokens", "pooled"), [((1, 5, 7), (1, 32)), ((1, 5, 48), (1, 9)), ((1, 5, 48), (1, 0))])
def test_conditioning_of_another_model_is_one_sentence(
    parts: dict[str, Any], tokens: tuple[int, ...], pooled: tuple[int, ...]
) -> None:
    foreign = [[torch.zeros(tokens), {"pooled_output": torch.zeros(pooled)}]]
    with pytest.raises(ValueError, match=r"conditioning is .* wide, and the DiT takes"):
        sample(parts, foreign, latent())


def test_sigmas_of_another_model_are_one_sentence(parts: dict[str, Any], conditioning: Any) -> None:
    with pytest.raises(ValueError, match="must decrease from at most 1"):
        sample(parts, conditioning, latent(), sigmas=torch.tensor([14.6, 3.0, 0.0]))


def test_latent_with_nan_is_reported_at_its_step(parts: dict[str, Any], conditioning: Any) -> None:
    with pytest.raises(ValueError, match=r"NaN or infinite at step 1 of 2 \(sigma"):
        sample(parts, conditioning, latent(value=float("nan")), denoise=0.5)
    with pytest.raises(ValueError, match="NaN or infinite"):
        run("UniWorldVAEDecode", vae=parts["vae"], latent=latent(value=float("nan")))


def test_picture_that_cannot_be_read_is_one_sentence(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="takes aspect ratios up to 200:1"):
        run("UniWorldReference", image=torch.zeros(1, 1, 300, 3), siglip=parts["siglip"])
    with pytest.raises(ValueError, match="NaN"):
        run("UniWorldReference", image=torch.full((1, 8, 8, 3), float("nan")))


# --- validation before a run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["UniWorldCondition", "UniWorldUnderstand", "UniWorldRoute"])
def test_an_empty_prompt_is_found_by_validation_and_a_linked_one_is_left_alone(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    assert "empty" in str(node.VALIDATE_INPUTS(prompt="  "))
    assert "<|vision_end|>" in str(node.VALIDATE_INPUTS(prompt="a <|vision_end|> b"))
    assert node.VALIDATE_INPUTS(prompt="Make it winter.") is True
    assert node.VALIDATE_INPUTS() is True


def test_a_missing_subject_is_found_by_validation() -> None:
    node = NODE_CLASS_MAPPINGS["UniWorldPerception"]
    assert "subject" in str(node.VALIDATE_INPUTS(task="segmentation", subject=""))
    assert node.VALIDATE_INPUTS(task="segmentation", subject="cat") is True
    assert node.VALIDATE_INPUTS(task="canny", subject="") is True
    assert node.VALIDATE_INPUTS(task="segmentation") is True


def test_the_transparent_part_of_a_reference_becomes_white() -> None:
    image, mask = torch.zeros(1, 8, 6, 3), torch.zeros(1, 8, 6)
    mask[:, :4] = 1.0
    (references,) = NODE_CLASS_MAPPINGS["UniWorldReference"]().execute(image, mask=mask)
    picture = references[0].picture
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((0, 7)) == (0, 0, 0)


def test_the_mask_of_a_picture_without_transparency_changes_nothing() -> None:
    image = torch.rand(2, 8, 6, 3)
    (plain,) = NODE_CLASS_MAPPINGS["UniWorldReference"]().execute(image)
    (masked,) = NODE_CLASS_MAPPINGS["UniWorldReference"]().execute(image, mask=torch.zeros(1, 64, 64))
    assert [ref.picture.tobytes() for ref in plain] == [ref.picture.tobytes() for ref in masked]


def test_a_mask_of_another_picture_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="same Load Image"):
        NODE_CLASS_MAPPINGS["UniWorldReference"]().execute(torch.zeros(1, 8, 6, 3), mask=torch.ones(1, 9, 9))


def test_a_vision_output_without_states_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="SigLIP2-512"):
        NODE_CLASS_MAPPINGS["UniWorldReference"]().execute(torch.zeros(1, 8, 6, 3), clip_vision_output={})


def test_parts_leave_a_small_memory_for_each_other_and_come_back_the_same() -> None:
    from uniworld.nodes.pack.parts import open_parts
    from uniworld.uniworld_core.families.table import family_of
    from uniworld.uniworld_core.loading.folders import ModelFolders
    from uniworld.uniworld_core.loading.memory import ModelMemory
    from uniworld.uniworld_core.loading.shipped import shipped_model

    shipped = shipped_model("tiny")
    assert shipped is not None
    memory = ModelMemory(budget=2_500_000)  # the DiT alone takes 2 MB, the VLM 1 MB
    host.install(host.PlainHost(memory=memory))
    folders = ModelFolders(shipped.checkpoint, shipped.flux, shipped.siglip)
    parts = open_parts(family_of(shipped.checkpoint), folders, "float32", "cpu")
    before = parts.dit.on_device().transformer.proj_out.weight.clone()
    parts.vlm.loaded["understanding"]
    assert memory.used() < 2_500_000
    assert torch.equal(parts.dit.on_device().transformer.proj_out.weight, before)
    assert memory.used() < 2_500_000
