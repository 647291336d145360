"""LATENTs name the family of their samples, and samplers and decoders of another family refuse them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.nodes.pack.latents import PrivateLatent, samples_of, to_latent
from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS
from uniworld.uniworld_core.errors import UniWorldError

# UniPic's latents, which have FLUX's 16 channels, and those of a VAE for videos.
UNIPIC = replace(FLUX_LATENTS, name="unipic", factor=16, pack=1, in_comfyui=False)
VIDEO = replace(FLUX_LATENTS, name="qwen_image", ndim=5)
AUTO = {"flux": "auto", "siglip": "auto", "dtype": "float32", "device": "cpu"}


@pytest.fixture(autouse=True)
def here() -> Any:
    host.install(host.PlainHost())
    yield
    host.install(None)


def run(name: str, **inputs: Any) -> Any:
    node = NODE_CLASS_MAPPINGS[name]
    return getattr(node(), node.FUNCTION)(**inputs)


@pytest.fixture
def parts(here: None) -> dict[str, Any]:
    vlm, _, dit, vae, text, *_ = run("UniWorldLoader", checkpoint="nano", **AUTO)
    return {"vlm": vlm, "dit": dit, "vae": vae, "text": text}


def empty(**more: Any) -> dict[str, Any]:
    settings = {"width": 64, "height": 64, "area_side": 64, "ratios": "any_1ratio", "batch_size": 1}
    return run("UniWorldEmptyLatent", **settings, **more)[0]


SAMPLING = {"seed": 0, "steps": 1, "guidance": 3.5, "denoise": 1.0}


def test_empty_encoded_and_painted_latents_name_their_family(parts: dict[str, Any]) -> None:
    conditioning, _ = run("UniWorldCondition", vlm=parts["vlm"], prompt="A red circle.")
    (encoded,) = run("UniWorldVAEEncode", vae=parts["vae"], image=torch.zeros(1, 32, 32, 3))
    (painted,) = run("UniWorldSampler", dit=parts["dit"], conditioning=conditioning, latent=encoded, **SAMPLING)
    for latent in (empty(), empty(dit=parts["dit"]), encoded, painted):
        assert latent["uniworld_format"] == "flux"
    assert run("UniWorldVAEDecode", vae=parts["vae"], latent=painted)[0].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("node", ["UniWorldSampler", "UniWorldFlowScheduler", "UniWorldVAEDecode"])
def test_latents_of_another_family_are_refused_with_both_names(parts: dict[str, Any], node: str) -> None:
    latent = to_latent(torch.zeros(1, 16, 4, 4), UNIPIC)
    conditioning = [[torch.zeros(1, 2, 192), {"pooled_output": torch.zeros(1, 128)}]]
    inputs: dict[str, Any] = {
        "UniWorldSampler": {"dit": parts["dit"], "conditioning": conditioning, **SAMPLING},
        "UniWorldFlowScheduler": {"dit": parts["dit"], "steps": 2, "denoise": 1.0},
        "UniWorldVAEDecode": {"vae": parts["vae"]},
    }
    with pytest.raises(UniWorldError) as error:
        run(node, latent=latent, **inputs[node])
    sentence = str(error.value)
    assert "belongs to the family 'unipic'" in sentence
    assert "belongs to the family 'flux'" in sentence
    assert NODE_CLASS_MAPPINGS[node].DISPLAY_NAME in sentence
    assert "decode the latent with the VAE of 'unipic'" in sentence
    assert [parts[name]._managed for name in ("dit", "vae")] == [None, None]  # refused before the weights are read


def test_an_empty_latent_has_the_format_of_the_connected_model(parts: dict[str, Any]) -> None:
    for latents, shape in ((UNIPIC, (1, 16, 4, 4)), (VIDEO, (1, 16, 1, 8, 8))):
        dit = replace(parts["dit"], facts=replace(parts["dit"].facts, latent_format=latents))
        latent = empty(dit=dit)
        assert latent["uniworld_format"] == latents.name
        assert samples_of(latent, latents, "UniWorld Sampler").shape == shape


def test_a_latent_without_samples_is_an_error() -> None:
    with pytest.raises(UniWorldError, match="The latent for UniWorld Sampler has no samples"):
        samples_of({}, FLUX_LATENTS, "UniWorld Sampler")  # type: ignore[typeddict-item]


def test_latents_without_a_format_count_as_flux_if_their_shape_fits() -> None:
    plain = {"samples": torch.zeros(1, 16, 4, 4)}
    assert samples_of(plain, FLUX_LATENTS, "UniWorld Sampler") is plain["samples"]
    with pytest.raises(UniWorldError, match=r"names no family and has the shape of .* 'flux', but .* family 'unipic'"):
        samples_of(plain, UNIPIC, "UniWorld Sampler")
    # FLUX's VAE makes odd sides of some images. No node of ComfyUI makes latents of UniPic.
    odd = {"samples": torch.zeros(1, 16, 5, 4)}
    with pytest.raises(UniWorldError, match=r"names no family, but .* 'unipic': .* with the VAE that it was made for"):
        samples_of(odd, UNIPIC, "UniWorld VAE Decode")
    # ComfyUI's empty latents of 4 channels only give a size.
    small = {"samples": torch.zeros(1, 4, 4, 4)}
    assert samples_of(small, FLUX_LATENTS, "UniWorld Scheduler") is small["samples"]
    # Not a shape of FLUX: the model that gets them reports whether they fit.
    video = {"samples": torch.zeros(1, 16, 1, 4, 4)}
    assert samples_of(video, VIDEO, "UniWorld Sampler") is video["samples"]


@pytest.mark.parametrize("copied", [lambda latent: latent, dict.copy, copy.copy, copy.deepcopy, lambda x: x.copy()])
def test_nodes_of_comfyui_cannot_read_the_samples_of_a_family_that_it_lacks(copied: Any) -> None:
    z = torch.ones(1, 16, 4, 4)
    latent = copied(to_latent(z, UNIPIC, {"noise_mask": torch.ones(1, 64, 64), "batch_index": [4]}))  # type: ignore[typeddict-item]
    assert "samples" not in latent
    assert latent["batch_index"] == [4]
    latent["batch_index"] = [5]
    assert samples_of(latent, UNIPIC, "UniWorld VAE Decode").equal(z)
    if copied is dict.copy:  # a plain dict
        return
    assert isinstance(latent, PrivateLatent)
    with pytest.raises(UniWorldError, match=r"belongs to the family 'unipic', .*: connect it to UniWorld VAE Decode"):
        latent["samples"]
    with pytest.raises(KeyError, match="anything else"):
        latent["anything else"]


def test_other_keys_of_a_latent_are_kept() -> None:
    made = to_latent(
        torch.ones(1), FLUX_LATENTS, {"samples": torch.zeros(1), "batch_index": [4], "uniworld_format": "x"}
    )
    scale = {"uniworld_normalization": (0.1159, 0.3611)}
    assert made == {"samples": torch.ones(1), "batch_index": [4], "uniworld_format": "flux", **scale}
