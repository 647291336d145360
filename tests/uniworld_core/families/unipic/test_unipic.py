"""UniPic on a tiny random checkpoint in the published formats: files, painting, answers and their errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.uniworld_core import Condition, Conversation, Turn, UniWorld
from uniworld.uniworld_core.backbones.token_diffusion import diffusion_objective
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families.unipic.checkpoint import UniPicParts
from uniworld.uniworld_core.families.unipic.condition import encode_requests
from uniworld.uniworld_core.families.unipic.config import UNIPIC_LATENTS
from uniworld.uniworld_core.families.unipic.painting import Revealed, draw_order, paint, plan
from uniworld.uniworld_core.families.unipic.prompts import Request
from uniworld.uniworld_core.images.sizes import Size, crop_box

FLOAT32 = torch.float32
NATIVE = Size(64, 64)


@pytest.fixture(scope="module")
def model(unipic: Path) -> UniWorld:
    return UniWorld.from_pretrained(unipic, dtype=FLOAT32)


@pytest.fixture(scope="module")
def condition(model: UniWorld) -> Condition:
    return model.encode("a red ball")


@pytest.fixture(scope="module")
def painted(model: UniWorld, condition: Condition) -> torch.Tensor:
    return model.sample(condition, 64, 64, steps=2, seed=5)


def picture(width: int = 90, height: int = 60) -> Image.Image:
    pixels = torch.arange(height * width * 3).reshape(height, width, 3) * 7 % 251
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def opened(folder: Path) -> UniWorld:
    return UniWorld.from_pretrained(folder, dtype=FLOAT32)


# --- files ------------------------------------------------------------------------------------------------------------


def test_facts(model: UniWorld) -> None:
    facts = model.parts.facts
    assert (facts.native_side, facts.latent_format.name, facts.shift) == (64, "unipic", None)
    assert facts.size_for(30, 50, 48) == Size(48, 48)
    assert "siglip" not in model.parts


def sharded(folder: Path) -> None:
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "pytorch_model.bin").unlink()


def rewritten(change: Callable[[dict[str, Any]], Any], **how: Any) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        torch.save(change(state) or state, folder / "pytorch_model.bin", **how)

    return rewrite


def tie(state: dict[str, Any]) -> None:
    state["llm.lm_head.weight"] = state["llm.model.embed_tokens.weight"]


FORMS: dict[str, Callable[[Path], None]] = {
    "shards": sharded,
    "before torch 1.6": rewritten(lambda state: None, _use_new_zipfile_serialization=False),
    "bfloat16": rewritten(lambda state: {name: tensor.bfloat16() for name, tensor in state.items()}),
    "one tensor under two names": rewritten(tie),
    "transposed in memory": rewritten(
        lambda state: {n: t.t().contiguous().t() if t.ndim == 2 else t for n, t in state.items()}
    ),
    "without SigLIP2": rewritten(lambda state: {n: t for n, t in state.items() if not n.startswith("siglip2")}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_is_read(model: UniWorld, unipic_copy: Path, form: str) -> None:
    FORMS[form](unipic_copy)
    found = UniPicParts(unipic_copy)
    found.check()
    ours = found.get("dit", FLOAT32, "cpu").network.state_dict()
    for name, tensor in model.dit.network.state_dict().items():
        tolerance = 1e-2 if form == "bfloat16" and tensor.ndim == 1 else 0
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=tolerance)


def removed(*names: str) -> Callable[[Path], None]:
    return rewritten(lambda state: {name: tensor for name, tensor in state.items() if name not in names})


def harmon_tables(folder: Path) -> None:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("siglip2")}
        for name in ("encoder", "decoder"):
            state[f"mar.{name}_pos_embed_learned"] = torch.zeros(1, 64 + 256, 32)
        return state | {"mar.diffusion_pos_embed_learned": torch.zeros(1, 256, 32)}

    rewritten(change)(folder)


class Evil:
    """A pickle that makes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def evil(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = torch.load(folder / name, weights_only=True)
        torch.save(state | {"x": Evil(folder / "ran")}, folder / name)

    return spoil


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Harmon's file": (lambda folder: (folder / "pytorch_model.bin").rename(folder / "harmon_1.5b.pth"), "holds Harmon"),
    "Harmon under UniPic's name": (harmon_tables, "holds Harmon"),
    "no weights": (lambda folder: (folder / "pytorch_model.bin").unlink(), "expected pytorch_model.bin"),
    "a key of the language model is missing": (
        removed("llm.model.layers.1.mlp.up_proj.weight"),
        "missing: llm.model.layers.1.mlp.up_proj.weight",
    ),
    "the language model is missing": (
        rewritten(lambda state: {n: t for n, t in state.items() if not n.startswith("llm.")}),
        "llm.model.layers.0",
    ),
    "an unknown key": (rewritten(lambda state: state | {"vae.x": torch.zeros(2)}), "vae.x, which does not belong"),
    "another width": (
        rewritten(lambda state: state | {"proj_in.0.bias": torch.zeros(5)}),
        "proj_in.0.bias in pytorch_model.bin has shape",
    ),
    "another model": (rewritten(lambda state: {"model.weight": torch.zeros(2)}), "does not hold UniPic"),
    "a list": (rewritten(lambda state: [torch.zeros(2)]), "holds list, not tensors by name"),
    "code": (evil("pytorch_model.bin"), "pytorch_model.bin was rejected"),
    "code in the VAE": (evil("kl16.ckpt"), "kl16.ckpt was rejected"),
    "another VAE": (
        lambda folder: torch.save({"model": {"encoder.down.0.x": torch.zeros(1)}}, folder / "kl16.ckpt"),
        "has 1 levels",
    ),
    "a VAE without its key": (lambda folder: torch.save({}, folder / "kl16.ckpt"), "has no 'model'"),
    "no VAE": (lambda folder: (folder / "kl16.ckpt").unlink(), "has none of the files kl16.ckpt, config.json"),
    "no language model": (
        lambda folder: (folder / "Qwen2.5-1.5B-Instruct" / "config.json").unlink(),
        "needs the files of Qwen2.5-1.5B-Instruct",
    ),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_folder_is_one_error_that_names_it(unipic_copy: Path, how: str) -> None:
    damage, named = DAMAGED[how]
    damage(unipic_copy)
    with pytest.raises(UniWorldError, match=r"(?s).*") as error:
        opened(unipic_copy)
    assert named in str(error.value)
    assert not (unipic_copy / "ran").exists()


def test_a_lora_is_refused(model: UniWorld, tmp_path: Path) -> None:
    with pytest.raises(UniWorldError, match="UniPic takes no LoRA"):
        model.load_lora(tmp_path / "lora.safetensors")


# --- painting ---------------------------------------------------------------------------------------------------------


def test_an_item_is_the_same_alone_and_in_a_batch(model: UniWorld, painted: torch.Tensor) -> None:
    both = model.encode(["a long story about two dogs", "a red ball"])
    found = model.sample(both, 64, 64, steps=2, seed=[9, 5])
    torch.testing.assert_close(found[1:], painted, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(found[:1], painted)


def test_a_seed_stands_for_the_order_and_the_noise_of_every_token(
    model: UniWorld, condition: Condition, painted: torch.Tensor
) -> None:
    order, noise = draw_order([5], 16, 16)
    assert torch.equal(paint(model.dit, condition, NATIVE, noise, 2, order=order), painted)
    # A longer run of the same seed starts with the same noise of the same tokens: what it reveals first is the same.
    first = plan(16, 2, 3.0, "constant")[0].hidden
    place = int(order[0, -1])
    assert place not in order[0, :first]
    seen = []
    for iterations in (2, 3):
        steps: list[Revealed] = []
        paint(model.dit, condition, NATIVE, [5], iterations, callback=steps.append)
        seen.append(next(step.latents for step in steps if step.latents is not None).flatten(2)[0, :, place])
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)


def test_progress_counts_work_and_reports_within_an_iteration(model: UniWorld, condition: Condition) -> None:
    steps: list[Revealed] = []
    paint(model.dit, condition, NATIVE, [0], 2, callback=steps.append)
    work = [step.work for step in steps]
    assert work == sorted(work)
    assert work[-1] == pytest.approx(1)
    assert len(steps) == 2 * 101
    revealed = [int(step.visible.sum()) for step in steps if step.visible is not None]
    assert revealed == [5, 16]
    with pytest.raises(KeyboardInterrupt):
        paint(model.dit, condition, NATIVE, [0], 2, callback=interrupt_at(30))


def interrupt_at(count: int) -> Callable[[Revealed], None]:
    seen = iter(range(count))

    def callback(step: Revealed) -> None:
        if next(seen, None) is None:
            raise KeyboardInterrupt

    return callback


def test_guidance_of_one_needs_no_negative(model: UniWorld, condition: Condition) -> None:
    alone = Condition(condition.tokens, mask=condition.mask)
    found = paint(model.dit, alone, NATIVE, [0], 1, 1.0)
    assert torch.equal(found, paint(model.dit, condition, NATIVE, [0], 1, 1.0))
    with pytest.raises(UniWorldError, match="set guidance to 1"):
        paint(model.dit, alone, NATIVE, [0], 1, 3.0)


def test_an_edit_sees_its_picture(model: UniWorld) -> None:
    found = []
    for source in (picture(), Image.new("RGB", (64, 64), "white")):
        condition = model.encode("make it red", refs=model.reference([source], use_siglip=False))
        assert condition.references[0].shape == (1, 16, 4, 4)
        found.append(model.sample(condition, 64, 64, steps=1))
    assert not torch.allclose(*found)


def test_a_negative_prompt_replaces_the_published_one(model: UniWorld, condition: Condition) -> None:
    refs = model.reference([picture()], use_siglip=False)
    for prompt, given in (("a red ball", None), ("make it red", refs)):
        blurred = model.encode(prompt, refs=given, negative="blurred")
        vae = None if given is None else model.vae
        request = Request(prompt, None if given is None else refs[0].picture)
        wanted = encode_requests(model.dit, vae, [request], negative="blurred")
        assert blurred.negative is not None
        assert wanted.negative is not None
        assert torch.equal(blurred.negative.tokens, wanted.negative.tokens)
        assert torch.equal(blurred.tokens, wanted.tokens)
        published = model.encode(prompt, refs=given).negative
        assert published is not None
        assert not torch.equal(blurred.negative.tokens, published.tokens)
    with pytest.raises(UniWorldError, match="The negative prompt contains <image>"):
        model.encode("a red ball", negative="a <image>")


def test_the_crop_of_an_edit_has_the_painted_ratio() -> None:
    assert crop_box(60, 90, Size(64, 64)) == (15, 0, 75, 60)
    assert crop_box(90, 61, Size(64, 64)) == (0, 14, 61, 75)
    assert crop_box(60, 90, Size(64, 128)) == (0, 7, 90, 52)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a side of 40": ({"height": 40}, "multiple of 16, such as"),
    "more iterations than tokens": ({"steps": 17}, "iterations is 17; it must be from 1 to the 16 tokens"),
    "no iterations": ({"steps": 0}, "iterations is 0"),
    "negative guidance": ({"guidance": -1.0}, "guidance is -1"),
    "noise without order": ({"noise": torch.zeros(1, 16, 4, 4)}, "noise of tokens with their order"),
    "noise levels": ({"sigmas": torch.ones(3)}, "leave out sigmas, solver and cache"),
    "a solver": ({"solver": "dpm2"}, "leave out sigmas, solver and cache"),
    "a cache": ({"cache": "light"}, "leave out sigmas, solver and cache"),
}


@pytest.mark.parametrize("how", BAD)
def test_invalid_settings_are_errors(model: UniWorld, condition: Condition, how: str) -> None:
    settings, named = BAD[how]
    with pytest.raises(UniWorldError, match=named):
        model.sample(condition, **({"height": 64, "width": 64, "steps": 2} | settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"schedule": "cosine"}, "it must be one of constant, linear"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"order": torch.zeros(1, 16, dtype=torch.long)}, "must be a permutation of 16 places"),
        ({"order": torch.arange(16.0)[None]}, "has dtype torch.float32; it must be int64"),
        ({"noise": []}, "There are no seeds"),
        ({"noise": torch.zeros(1, 16, 4)}, "without an order"),
        ({"noise": torch.zeros(1, 16, 4), "order": torch.arange(16)[None]}, "these pictures need"),
    ],
)
def test_invalid_settings_of_the_loop_are_errors(
    model: UniWorld, condition: Condition, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UniWorldError, match=named):
        paint(model.dit, condition, NATIVE, **({"noise": [0], "iterations": 2} | settings))


def test_conditions_of_other_models_and_sizes_are_errors(model: UniWorld) -> None:
    with pytest.raises(UniWorldError, match="encode the prompt with the same model"):
        model.sample(Condition(torch.zeros(1, 3, 64), pooled=torch.zeros(1, 8)), 64, 64, steps=2)
    edit = model.encode("make it red", refs=model.reference([picture()], use_siglip=False))
    with pytest.raises(UniWorldError, match="was encoded at 64x64, but 96x64"):
        model.sample(edit, 64, 96, steps=2)
    with pytest.raises(UniWorldError, match="has 2 references, and UniPic edits one"):
        model.sample(replace(edit, references=edit.references * 2), 64, 64, steps=2)


def test_prompts_that_the_model_cannot_read_are_errors(model: UniWorld) -> None:
    refs = model.reference([picture()], use_siglip=False)
    with pytest.raises(UniWorldError, match="<image>, which UniPic reserves"):
        model.encode("a <image>")
    with pytest.raises(UniWorldError, match="has 2 pictures, and UniPic reads one"):
        model.encode("both", refs=refs * 2)
    with pytest.raises(UniWorldError, match="has 3 turns, and UniPic reads one"):
        model.encode(Conversation([Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]))
    with pytest.raises(UniWorldError, match="1 of 2 prompts have a picture"):
        model.encode(["a", "b"], refs=[refs, []])
    with pytest.raises(UniWorldError, match="at most 4096"):
        model.encode("a dog and " * 4096)
    with pytest.raises(UniWorldError, match="negative prompt is empty"):
        encode_requests(model.dit, None, [Request("a")], negative=" ")


@pytest.mark.parametrize(("storage", "offload", "share"), [("int8", "none", 0.05), ("auto", "blocks", 0.0)])
def test_storage_and_offload(
    unipic: Path, condition: Condition, painted: torch.Tensor, storage: str, offload: str, share: float
) -> None:
    other = UniWorld.from_pretrained(unipic, dtype=FLOAT32, storage=storage, offload=offload)
    try:
        found = other.sample(condition, 64, 64, steps=2, seed=5)
    except UniWorldError as error:
        if offload == "none" or "diffusers" not in str(error):
            raise
        pytest.skip("this diffusers streams blocks only on machines with a GPU")
    assert float((found - painted).std()) <= share * float(painted.std())
    if storage == "int8":
        assert not torch.equal(found, painted)
    assert other.understand("what?", max_new_tokens=2) is not None


# --- VAE, answers, training -------------------------------------------------------------------------------------------


def test_pictures_pass_the_vae_at_a_sixteenth(model: UniWorld) -> None:
    z = model.vae.encode(torch.rand(1, 32, 48, 3))
    assert z.shape == (1, 16, 2, 3)
    assert model.decode(z).shape == (1, 32, 48, 3)
    with pytest.raises(UniWorldError, match=r"height/16"):
        model.decode(torch.zeros(1, 4, 2, 2))
    assert UNIPIC_LATENTS.to_model(z).allclose(z * 0.2325)


def test_colors_of_previews_are_fitted_to_the_vae(model: UniWorld) -> None:
    (layer,) = model.vae.rgb
    assert (len(layer), len(layer[0])) == (17, 3)
    assert model.vae.rgb is model.vae.rgb


def test_answers_depend_on_the_picture_and_report_tokens(model: UniWorld) -> None:
    seen: list[int] = []
    refs = model.reference([picture()], use_siglip=False)
    answer = model.understand("what?", refs=refs, max_new_tokens=3, callback=seen.append)
    assert isinstance(answer, str)
    assert seen == [1, 2, 3]
    assert model.understand(["what?", "who?"], refs=[refs, []], max_new_tokens=3)[0] == answer
    assert model.understand("what?", refs=refs, max_new_tokens=3, temperature=1e4, seed=3) != answer
    with pytest.raises(UniWorldError, match="max_new_tokens is 0"):
        model.understand("what?", max_new_tokens=0)


def test_the_language_model_is_that_of_the_checkpoint(model: UniWorld, unipic: Path) -> None:
    stored = torch.load(unipic / "pytorch_model.bin", weights_only=True)["llm.model.embed_tokens.weight"]
    llm = model.dit.network.llm
    assert torch.equal(llm.model.embed_tokens.weight, stored)
    hidden = torch.randn(1, 1, 32)
    torch.testing.assert_close(llm.lm_head(hidden), hidden @ stored.T)


def test_training_reduces_the_objective(model: UniWorld) -> None:
    import copy

    head = copy.deepcopy(model.dit.network.head).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    x, states = torch.randn(2, 16, 16, generator=generator), torch.randn(2, 16, 32, generator=generator)
    hidden = torch.rand(2, 16, generator=generator) < 0.7
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = diffusion_objective(head, x, states, hidden, torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
