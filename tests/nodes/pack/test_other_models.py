"""Wires between models of different families: they work if the models agree, and otherwise the error names both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.nodes.pack.latents import samples_of
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import UniWorldError

V1, KONTEXT, QWEN, UNIPIC = "UniWorld-V1", "FLUX.1 Kontext", "Qwen-Image-Edit-2509", "UniPic"
FAMILIES = (V1, KONTEXT, QWEN, UNIPIC)
PAINTERS = FAMILIES[:3]  # with noise levels
AUTO = {"flux": "auto", "siglip": "auto", "dtype": "float32", "device": "cpu"}
# Formats of latents, as LATENT names them.
FORMATS = {V1: "flux", KONTEXT: "flux", QWEN: "qwen_image", UNIPIC: "unipic"}


def run(name: str, **inputs: Any) -> Any:
    node = NODE_CLASS_MAPPINGS[name]
    return getattr(node(), node.FUNCTION)(**inputs)


@pytest.fixture(scope="module")
def models(
    kontext_folder: Path, qwen_edit: Path, unipic: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """{family: its parts, with a condition and a latent that it made}."""
    root = tmp_path_factory.mktemp("models")
    checkpoints = {V1: "tiny"}
    for family, folder, kind in ((KONTEXT, kontext_folder, "diffusers"), (QWEN, qwen_edit, "diffusers"), (UNIPIC, unipic, "unipic")):  # fmt: skip
        (root / kind).mkdir(exist_ok=True)
        (root / kind / folder.name).symlink_to(folder, target_is_directory=True)
        checkpoints[family] = folder.name
    host.install(host.PlainHost(models=(root,)))
    made = {}
    for family, checkpoint in checkpoints.items():
        outputs = run("UniWorldLoader", checkpoint=checkpoint, **AUTO)
        parts = dict(zip(("vlm", "siglip", "dit", "vae", "text"), outputs))
        parts["condition"] = run("UniWorldCondition", vlm=parts["vlm"], prompt="A red circle.")[0]
        parts["latent"] = run(
            "UniWorldEmptyLatent",
            width=64,
            height=64,
            area_side=64,
            ratios="any_1ratio",
            batch_size=1,
            dit=parts["dit"],
        )[0]
        made[family] = parts
    host.install(None)
    return made


@pytest.fixture(autouse=True)
def here() -> Any:
    host.install(host.PlainHost())
    yield
    host.install(None)


def sample(parts: dict[str, Any], **other: Any) -> Any:
    """Paint one step with a model's own parts, or with others."""
    inputs: dict[str, Any] = {"dit": parts["dit"], "conditioning": parts["condition"], "seed": 0, "guidance": 1.0}
    if parts["dit"].facts.shift is None:
        settings = {"iterations": 1, "schedule": "constant", "temperature": 1.0, "side": 32, "batch_size": 1}
        return run("UniWorldUniPicSampler", **{**inputs, **settings, **other})[0]
    return run("UniWorldSampler", **{**inputs, "latent": parts["latent"], "steps": 1, "denoise": 1.0, **other})[0]


def schedule(parts: dict[str, Any], steps: int = 1) -> torch.Tensor:
    return run("UniWorldFlowScheduler", dit=parts["dit"], latent=parts["latent"], steps=steps, denoise=1.0)[0]


def refused(*names: str) -> Any:
    """Expect an error that has these names in it."""
    return pytest.raises(UniWorldError, match=".*".join(name.replace(".", r"\.") for name in names))


@pytest.mark.parametrize("painter", FAMILIES)
def test_a_prompt_is_painted_by_the_family_that_encoded_it(models: dict[str, Any], painter: str) -> None:
    for encoder in FAMILIES:
        condition = models[encoder]["condition"]
        if encoder == painter:
            latents = models[painter]["dit"].facts.latent_format
            assert samples_of(sample(models[painter]), latents, "this test").isfinite().all()
            continue
        with refused(f"encoded by {encoder}", f"{painter} is to paint"):
            sample(models[painter], conditioning=condition)


def test_a_conditioning_without_a_family_is_used_as_it_is(models: dict[str, Any]) -> None:
    """Those of ComfyUI's own text encoders have none."""
    ((tokens, extra),) = models[KONTEXT]["condition"]
    plain = [[tokens, {key: value for key, value in extra.items() if key != "uniworld_family"}]]
    wanted = sample(models[KONTEXT])["samples"]
    assert torch.equal(sample(models[KONTEXT], conditioning=plain)["samples"], wanted)


def test_noise_levels_are_those_of_the_model_that_paints(models: dict[str, Any]) -> None:
    for painter in PAINTERS:
        own = sample(models[painter], sigmas=schedule(models[painter]))["samples"]
        for other in PAINTERS:
            sigmas = schedule(models[other])
            if QWEN in (painter, other) and painter != other:
                with refused(f"computed for {other}", f"model that paints, {painter}"):
                    sample(models[painter], sigmas=sigmas)
            else:  # UniWorld-V1 and FLUX.1 Kontext have FLUX's shift
                assert torch.equal(sample(models[painter], sigmas=sigmas)["samples"], own)
        with refused("UniWorld Scheduler takes models with noise levels", "UniPic has none"):
            schedule(models[UNIPIC])


def test_noise_levels_of_another_checkpoint_of_the_family_and_of_other_nodes(models: dict[str, Any]) -> None:
    facts = models[QWEN]["dit"].facts
    other = {
        **models[QWEN],
        "dit": replace(models[QWEN]["dit"], facts=replace(facts, shift=replace(facts.shift, max_mu=3.0))),
    }
    with refused(f"another model of {QWEN}", QWEN):
        sample(models[QWEN], sigmas=schedule(other))
    # ComfyUI's nodes that split or change noise levels make new tensors.
    assert sample(models[QWEN], sigmas=schedule(models[V1]).clone())["samples"].isfinite().all()
    (levels,) = run(
        "UniWorldFlowScheduler", dit=models[QWEN]["dit"], latent=models[QWEN]["latent"], steps=3, denoise=1.0
    )
    assert levels.shape == (4,)


def test_latents_are_used_by_models_of_their_format(models: dict[str, Any]) -> None:
    for maker in FAMILIES:
        made = sample(models[maker])
        for user in FAMILIES:
            if FORMATS[maker] == FORMATS[user]:
                assert run("UniWorldVAEDecode", vae=models[user]["vae"], latent=made)[0].isfinite().all()
                continue
            with refused(f"'{FORMATS[maker]}'", "UniWorld VAE Decode", f"'{FORMATS[user]}'"):
                run("UniWorldVAEDecode", vae=models[user]["vae"], latent=made)
            if user in PAINTERS:
                with refused(f"'{FORMATS[maker]}'", "UniWorld Sampler", f"'{FORMATS[user]}'"):
                    sample(models[user], latent=models[maker]["latent"])


def test_latents_of_a_vae_with_another_normalization_are_refused(models: dict[str, Any]) -> None:
    """As those of nano, whose VAE is not FLUX's."""
    nano = dict(zip(("vlm", "siglip", "dit", "vae"), run("UniWorldLoader", checkpoint="nano", **AUTO)))
    (encoded,) = run("UniWorldVAEEncode", vae=nano["vae"], image=torch.zeros(1, 64, 64, 3))
    both = ("shift -0.0383 and scale 0.4414", "shift 0.1159 and scale 0.3611")
    with refused(both[0], "UniWorld Sampler", both[1]):
        sample(models[KONTEXT], latent=encoded, denoise=0.5)
    with refused(both[1], "UniWorld VAE Decode", both[0]):
        run("UniWorldVAEDecode", vae=nano["vae"], latent=sample(models[V1]))
    # An empty latent only has a size.
    assert "uniworld_normalization" not in models[V1]["latent"]
    assert run("UniWorldVAEDecode", vae=nano["vae"], latent=models[V1]["latent"])[0].shape == (1, 64, 64, 3)


def test_unipic_takes_its_own_vae_and_no_other_model(models: dict[str, Any]) -> None:
    image = torch.zeros(1, 32, 32, 3)
    for other in PAINTERS:
        settings = {"prompt": "Make it red.", "negative": "", "side": 32, "image": image}
        with refused("UniWorld UniPic Condition takes UniPic", other):
            run("UniWorldUniPicCondition", dit=models[other]["dit"], vae=models[UNIPIC]["vae"], **settings)
        with refused("UniWorld UniPic Condition", other, "UniPic"):
            run("UniWorldUniPicCondition", dit=models[UNIPIC]["dit"], vae=models[other]["vae"], **settings)
        with refused("UniWorld UniPic Sampler takes UniPic", other):
            sample(models[UNIPIC], dit=models[other]["dit"])
        with refused("UniWorld Sampler takes models with noise levels", "UniPic has none"):
            sample(models[other], dit=models[UNIPIC]["dit"])


def test_clip_and_t5_of_another_model_are_refused_by_models_without_them(models: dict[str, Any]) -> None:
    for family in (QWEN, UNIPIC):
        with refused(family, "has no T5"):
            run("UniWorldCondition", vlm=models[family]["vlm"], prompt="red", text=models[V1]["text"])
        # Its own output is empty.
        run("UniWorldCondition", vlm=models[family]["vlm"], prompt="red", text=models[family]["text"])
    # FLUX's text encoders are the same in both.
    ours = run("UniWorldCondition", vlm=models[KONTEXT]["vlm"], prompt="red", text=models[KONTEXT]["text"])[0]
    theirs = run("UniWorldCondition", vlm=models[KONTEXT]["vlm"], prompt="red", text=models[V1]["text"])[0]
    assert torch.equal(ours[0][0], theirs[0][0])


def test_the_library_refuses_a_condition_of_another_family(kontext_folder: Path, model: UniWorld) -> None:
    kontext = UniWorld.from_pretrained(kontext_folder, dtype=torch.float32)
    with refused(f"encoded by {KONTEXT}", f"{V1} is to paint"):
        model.sample(kontext.encode("red"), 32, 32, steps=1)
