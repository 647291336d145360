"""Every number that the published implementation gives on the tiny checkpoint, met by this one.

`UNIWORLD_GOLDEN` names another folder of the same kind to be checked in the same way (see conftest.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.backbones.flux_latents import FLUX_SHIFT
from uniworld.uniworld_core.backbones.flux_transformer import build_transformer
from uniworld.uniworld_core.backbones.qwen_files import QWEN_NAMES, build_qwen
from uniworld.uniworld_core.backbones.qwen_template import chat_text
from uniworld.uniworld_core.families.uniworld_v1.checkpoint import DENOISER_NAMES, PROJECTOR_NAMES
from uniworld.uniworld_core.families.uniworld_v1.condition import project
from uniworld.uniworld_core.families.uniworld_v1.config import UniWorldConfig
from uniworld.uniworld_core.families.uniworld_v1.projectors import Projectors
from uniworld.uniworld_core.images.pictures import to_image
from uniworld.uniworld_core.images.sizes import RATIO_SETS, Size, size_by_aspect
from uniworld.uniworld_core.loading.meta import build
from uniworld.uniworld_core.prompts.text import IMAGE_PAD
from uniworld.uniworld_core.sampling import flow
from uniworld.uniworld_core.sampling.packing import grid_positions, pack

DATA = Path(__file__).parents[2] / "data"
FULLSIZE = DATA / "fullsize.json"
CASES = ("t2i", "edit", "fuse")
# Large tensors that the repository leaves out, because others of the same kind are there. UNIWORLD_GOLDEN has them.
LEFT_OUT = {"fuse.pixel_values", "fuse.image_t5", "fuse.image_vlm", "t2i.image_vlm"}
WITH_PICTURES = ("edit", "fuse")

# What is allowed after a whole run of five steps and the VAE; single parts are held closer.
TOLERANCE = 1e-4
PART = 2e-5


@pytest.fixture(scope="module")
def numbers(golden_data: Any) -> dict[str, torch.Tensor]:
    return golden_data.tensors("golden")


@pytest.fixture(scope="module")
def cases(golden_data: Any) -> dict[str, Any]:
    return golden_data.json("cases")


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = PART) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found.detach() - expected).abs().max()) <= tolerance


@pytest.fixture(scope="module")
def conditions(model: UniWorld, golden_data: Any, cases: dict[str, Any]) -> dict[str, dict[str, Condition]]:
    """{case: {"vlm": without T5, "t5": with it}}."""
    made = {}
    for name, case in cases.items():
        refs = model.reference([golden_data.picture(file) for file in case["images"]])
        made[name] = {
            "vlm": model.encode(case["prompt"], refs=refs, use_t5=False),
            "t5": model.encode(case["prompt"], refs=refs, t5_length=case["t5_max_length"]),
        }
    return made


class Case:
    """One golden case: its settings, its pictures, and its tensors without the prefix."""

    def __init__(self, name: str, golden: Any, settings: dict[str, Any], numbers: dict[str, torch.Tensor]) -> None:
        self.name, self.prompt = name, settings["prompt"]
        self.height, self.width, self.steps = settings["height"], settings["width"], settings["steps"]
        self.guidance, self.t5_length, self.text = settings["guidance"], settings["t5_max_length"], settings["text"]
        self.pictures = [golden.picture(file) for file in settings["images"]]
        self.tensors = {k.removeprefix(f"{name}."): v for k, v in numbers.items() if k.startswith(f"{name}.")}

        self.left_out = LEFT_OUT if golden.folder == DATA / "seed0" else set()

    def __getitem__(self, name: str) -> torch.Tensor:
        if f"{self.name}.{name}" in self.left_out:
            pytest.skip(f"{self.name}.{name} is not in the repository; UNIWORLD_GOLDEN tests it")
        return self.tensors[name]


@pytest.fixture
def case(request: Any, golden_data: Any, cases: dict[str, Any], numbers: dict[str, torch.Tensor]) -> Case:
    return Case(request.param, golden_data, cases[request.param], numbers)


each_case = pytest.mark.parametrize("case", CASES, indirect=True)
each_case_with_pictures = pytest.mark.parametrize("case", WITH_PICTURES, indirect=True)


# --- what the VLM reads and sees --------------------------------------------------------------------------------------


@each_case
def test_prompt_text_is_the_published_one(case: Case) -> None:
    assert chat_text(case.prompt, [1] * len(case.pictures)) == case.text


@each_case
def test_prompt_text_is_the_chat_template_without_its_system_turn(case: Case, golden_data: Any) -> None:
    jinja2 = pytest.importorskip("jinja2")
    file = golden_data.models / "uniworld" / "chat_template.json"
    template = jinja2.Template(json.loads(file.read_text(encoding="utf-8"))["chat_template"])
    content = [{"type": "text", "text": case.prompt}, *[{"type": "image"} for _ in case.pictures]]
    rendered = template.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    system, mark, user = rendered.partition("<|im_end|>\n")
    assert system.startswith("<|im_start|>system\n")
    assert mark
    assert chat_text(case.prompt, [1] * len(case.pictures)) == user
    assert user.count(IMAGE_PAD) == len(case.pictures)


@each_case
def test_token_ids_are_the_published_ones(model: UniWorld, case: Case) -> None:
    inputs = model.vlm.inputs([case.prompt], [case.pictures])
    assert torch.equal(inputs.ids, case["input_ids"])
    assert inputs.mask.all()


@each_case_with_pictures
def test_vlm_pixels_are_the_published_ones_to_the_bit(model: UniWorld, case: Case) -> None:
    inputs = model.vlm.inputs([case.prompt], [case.pictures])
    assert torch.equal(inputs.patches, case["pixel_values"])
    assert torch.equal(inputs.grids, case["image_grid_thw"])


@each_case
def test_hidden_states_are_met(model: UniWorld, case: Case) -> None:
    hidden = model.vlm.hidden_states(model.vlm.inputs([case.prompt], [case.pictures]))
    close(hidden, case["last_hidden"])
    with torch.inference_mode():
        close(model.vlm.qwen.lm_head(hidden[:, -1]), case["logits_last"])


@each_case
def test_routing_is_met(model: UniWorld, case: Case) -> None:
    route = model.route(case.prompt, model.reference(case.pictures, use_siglip=False))
    close(route.logits, case["task_logits"])
    close(route.probabilities, case["task_logits"].softmax(-1))
    assert route.paint.tolist() == (case["task_logits"][:, 1] > case["task_logits"][:, 0]).tolist()


@each_case
def test_greedy_answer_is_the_published_one(model: UniWorld, case: Case) -> None:
    length = case["generated"].shape[1]
    inputs = model.vlm.inputs([case.prompt], [case.pictures])
    assert torch.equal(model.vlm.generate(inputs, max_new_tokens=length), case["generated"])
    refs = model.reference(case.pictures, use_siglip=False)
    text = model.understand(case.prompt, refs=refs, max_new_tokens=length)
    assert text == model.vlm.tokenizer.decode(
        case["generated"][0], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


# --- the DiT's condition -----------------------------------------------------------------------------------------------


@each_case_with_pictures
def test_siglip_is_met(model: UniWorld, case: Case) -> None:
    refs = model.reference(case.pictures)
    assert torch.equal(model.siglip.pixel_values([ref.picture for ref in refs]), case["siglip_pixel_values"])
    close(torch.stack([ref.features for ref in refs]), case["siglip"])


@each_case
def test_text_encoders_are_met(model: UniWorld, case: Case) -> None:
    close(model.text.t5.tokens([case.prompt], case.t5_length), case["t5"])
    close(model.text.clip.pool([case.prompt]), case["pooled"])
    close(model.text.clip.pool([""]), case["pooled_empty"])


@each_case
def test_condition_is_met_with_and_without_siglip(model: UniWorld, case: Case, conditions: dict[str, Any]) -> None:
    alone = model.encode(case.prompt, refs=model.reference(case.pictures, use_siglip=False), use_t5=False)
    close(alone.tokens, case["embeds_no_siglip"])
    close(conditions[case.name]["vlm"].tokens, case["embeds"])
    close(conditions[case.name]["vlm"].pooled, case["pooled_empty"])
    assert conditions[case.name]["vlm"].mask is None


@each_case
def test_t5_goes_in_front_and_clip_pools_the_prompt(case: Case, conditions: dict[str, Any]) -> None:
    with_t5 = conditions[case.name]["t5"]
    close(with_t5.tokens, torch.cat([case["t5"], case["embeds"]], dim=1))
    close(with_t5.pooled, case["pooled"])


# --- painting ---------------------------------------------------------------------------------------------------------


@each_case
def test_one_velocity_is_met(model: UniWorld, case: Case, conditions: dict[str, Any]) -> None:
    noise, condition = case["noise"], conditions[case.name]["t5"]
    with torch.inference_mode():
        h, w = noise.shape[-2:]
        positions = grid_positions(h // 2, w // 2, noise.device)
        packed = model.dit.packed_velocity(pack(noise, 2), 0.6, condition, case.guidance, positions)
        close(packed, case["velocity_0p6"])
        assert torch.equal(pack(model.dit.velocity(noise, 0.6, condition, case.guidance), 2), packed)
        prepared = model.dit.velocity_for(condition, case.guidance, noise.shape)
        assert torch.equal(pack(prepared(noise, 0.6), 2), packed)


@each_case
def test_sigmas_are_met(case: Case) -> None:
    close(flow.schedule(case.steps, case.height // 16 * (case.width // 16), FLUX_SHIFT), case["sigmas"], 1e-6)


@each_case
@pytest.mark.parametrize("kind", ["t5", "vlm"])
def test_painted_latent_and_picture_are_met(model: UniWorld, case: Case, conditions: dict[str, Any], kind: str) -> None:
    size = {"height": case.height, "width": case.width}
    condition = conditions[case.name][kind]
    z = model.sample(condition, **size, steps=case.steps, guidance=case.guidance, noise=case["noise"])
    close(model.dit.latent_format.to_model(z), case[f"latent_{kind}"], TOLERANCE)
    image = model.decode(z)
    assert image.shape == (1, case.height, case.width, 3)
    close(image.permute(0, 3, 1, 2), case[f"image_{kind}"], TOLERANCE)


def test_vae_encoding_is_met(model: UniWorld, golden_data: Any, cases: dict[str, Any], numbers: dict[str, Any]) -> None:
    picture = to_image([golden_data.picture(cases["edit"]["images"][0])])
    close(model.vae.encode(picture), numbers["vae.encode_mode"])


def test_every_golden_tensor_is_compared(golden_data: Any, numbers: dict[str, torch.Tensor]) -> None:
    everywhere = {
        "input_ids",
        "last_hidden",
        "logits_last",
        "task_logits",
        "generated",
        "t5",
        "pooled",
        "pooled_empty",
        "embeds",
        "embeds_no_siglip",
        "noise",
        "velocity_0p6",
        "sigmas",
        "latent_t5",
        "latent_vlm",
        "image_t5",
        "image_vlm",
    }
    pictures = {"pixel_values", "image_grid_thw", "siglip", "siglip_pixel_values"}
    known = {f"{case}.{name}" for case in CASES for name in everywhere}
    known |= {f"{case}.{name}" for case in WITH_PICTURES for name in pictures}
    left_out = LEFT_OUT if golden_data.folder == DATA / "seed0" else set()
    assert set(numbers) == known - left_out | {"vae.encode_mode"}


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratios", RATIO_SETS)
def test_sizes_are_the_published_ones(golden_data: Any, ratios: str) -> None:
    # "HxW@side": [height, width] painted for a picture of H by W at an area of side * side.
    table = golden_data.json("anyres").get(ratios)
    if table is None:
        pytest.skip(f"the golden sizes have no {ratios}")
    found = {}
    for key in table:
        picture, side = key.split("@")
        height, width = map(int, picture.split("x"))
        found[key] = size_by_aspect(height, width, int(side) ** 2, ratios)
    assert found == {key: Size(*size) for key, size in table.items()}


def test_no_published_ratio_set_is_left_out(golden_data: Any) -> None:
    assert set(golden_data.json("anyres")) <= set(RATIO_SETS)


# --- full size --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fullsize() -> dict[str, Any]:
    return json.loads(FULLSIZE.read_text(encoding="utf-8"))


def test_layout_of_the_full_size_is_the_published_one(fullsize: dict[str, Any]) -> None:
    layout = UniWorld.checkpoint_layout(fullsize["config"])
    assert layout == {name: tuple(shape) for name, shape in fullsize["tensors"].items()}
    assert sum(torch.Size(shape).numel() for shape in layout.values()) == fullsize["parameters"]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda config: build_qwen(config.vlm), QWEN_NAMES),
        (lambda config: build_transformer(config.denoiser, config.source), DENOISER_NAMES),
        (lambda config: build(lambda: Projectors(config)), PROJECTOR_NAMES),
    ],
    ids=["vlm", "dit", "projectors"],
)
def test_full_size_module_takes_the_published_tensors_strictly(fullsize: dict[str, Any], make: Any, names: Any) -> None:
    module = make(UniWorldConfig.from_dict(fullsize["config"]))
    tensors = {
        ours: torch.empty(shape, device="meta")
        for name, shape in fullsize["tensors"].items()
        if (ours := names.in_module(name)) is not None
    }
    real = sum(parameter.nbytes for parameter in module.parameters() if not parameter.is_meta)
    assert real < 4 * 2**20  # the scales of norms, which layers make otherwise than with torch.empty
    module.load_state_dict(tensors, strict=True, assign=True)


def test_every_published_tensor_belongs_to_exactly_one_part(fullsize: dict[str, Any]) -> None:
    parts = (QWEN_NAMES, DENOISER_NAMES, PROJECTOR_NAMES)
    assert {sum(part.in_module(name) is not None for part in parts) for name in fullsize["tensors"]} == {1}


def test_layout_of_the_golden_checkpoint_is_its_own(golden_data: Any, model: UniWorld) -> None:
    from uniworld.uniworld_core.loading.weights import Shards

    shapes = Shards(golden_data.models / "uniworld").shapes
    config = golden_data.models / "uniworld" / "config.json"
    width = shapes["denoise_tower.siglip_projector.0.weight"][1]
    assert UniWorld.checkpoint_layout(config, siglip_width=width) == shapes


# --- the published training step --------------------------------------------------------------------------------------


class TrainingStep:
    """The published step: an edit without T5, guidance 1, CLIP on the empty string, weighted by the small mask."""

    def __init__(self, golden: Any) -> None:
        if not (golden.folder / "training.safetensors").is_file():
            pytest.skip("the golden folder has no training step")
        self.tensors, self.settings = golden.tensors("training"), golden.json("training")
        self.before, self.after = (golden.picture(f"images/mask_small_{side}.png") for side in ("src", "tgt"))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[f"train.{name}"]


@pytest.fixture(scope="module")
def step(golden_data: Any) -> TrainingStep:
    return TrainingStep(golden_data)


def test_training_inputs_are_met(model: UniWorld, step: TrainingStep) -> None:
    close(model.vae.latent_format.to_model(model.vae.encode(to_image([step.after]))), step["latent"])
    close(model.text.clip.pool([""]), step["pooled"])
    h, w = step["latent"].shape[-2:]
    mu = FLUX_SHIFT.mu(h // 2 * w // 2)
    assert mu == pytest.approx(step.settings["mu"], abs=1e-9)
    close(FLUX_SHIFT.apply(torch.tensor([step.settings["u"]]), h // 2 * w // 2), step["sigma"], 1e-6)


def test_training_prediction_loss_and_gradients_are_met(golden_data: Any, step: TrainingStep) -> None:
    model = golden_data.open_model()  # its own, since the projectors are made trainable
    projectors = model.projectors.requires_grad_(True)
    refs = model.reference([step.before])
    inputs = model.vlm.inputs([step.settings["prompt"]], [[ref.picture for ref in refs]])
    hidden = model.vlm.hidden_states(inputs)
    ends = inputs.ids == model.vlm.config.tokens["vision_end_token_id"]
    tokens, mask = project(projectors, hidden, inputs.mask, ends, [[ref.features for ref in refs]])
    condition = Condition(tokens, step["pooled"], mask)

    sigma = step["sigma"].reshape(1, 1, 1, 1)
    noisy = flow.add_noise(step["latent"], step["noise"], sigma)
    predicted = model.dit.velocity(noisy, step["sigma"], condition, guidance=1.0)
    close(predicted, step["pred"])

    weight = step.tensors["mask.small.log.weight"][:, None]
    loss = (weight * (predicted - (step["noise"] - step["latent"])) ** 2).mean()
    close(loss.reshape(1), step["loss"])
    loss.backward()
    for name in (name for name in step.tensors if name.startswith("train.grad.")):
        parameter = projectors.get_parameter(name.removeprefix("train.grad.denoise_tower."))
        close(parameter.grad, step.tensors[name])
    assert all(parameter.grad is None for parameter in projectors.vae_projector.parameters())
