"""The nodes on ComfyUI's own types, as far as they run without ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.nodes.pack.native.nodes import file_choice
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.sampling.sampler import make_noise


class WithFiles(host.PlainHost):
    """A host with text encoder files."""

    files: list[str] = []

    def model_files(self, kind: str) -> list[str]:
        return self.files if kind == "text_encoders" else []


@pytest.fixture(autouse=True)
def here() -> Iterator[WithFiles]:
    installed = WithFiles()
    host.install(installed)
    yield installed
    host.install(None)


def test_noise_of_an_item_is_that_of_its_seed_alone() -> None:
    (noise,) = NODE_CLASS_MAPPINGS["UniWorldNoise"]().execute(seed=2**64 - 1)
    latent = {"samples": torch.zeros(2, 16, 4, 6)}
    assert noise.seed == 2**64 - 1
    assert torch.equal(noise.generate_noise(latent)[1:], make_noise([0], (16, 4, 6)))


def test_sigmas_need_no_model_and_refuse_latents_of_another_family() -> None:
    node = NODE_CLASS_MAPPINGS["UniWorldSigmas"]()
    (sigmas,) = node.execute(latent={"samples": torch.zeros(1, 16, 32, 32)}, steps=4, denoise=1.0)
    assert len(sigmas) == 5
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    with pytest.raises(UniWorldError, match="another"):
        node.execute(latent={"samples": torch.zeros(1, 16, 32, 32), "uniworld_format": "another"}, steps=4, denoise=1.0)


def test_a_file_is_chosen_by_its_name(here: WithFiles) -> None:
    assert file_choice("projector", "projector", "").v1()[0] == ["uniworld_v1_projector.safetensors"]
    here.files = ["clip_l.safetensors", "uniworld_v1_projector.safetensors"]
    kind, options = file_choice("projector", "projector", "").v1()
    assert kind == here.files
    assert options["default"] == "uniworld_v1_projector.safetensors"
    here.files = ["clip_l.safetensors"]
    kind, *options = file_choice("projector", "projector", "").v1()
    assert kind == here.files
    assert not options


def test_siglip_encode_needs_a_picture() -> None:
    with pytest.raises(UniWorldError, match="no image to encode"):
        NODE_CLASS_MAPPINGS["UniWorldSigLIPEncode"]().execute(clip_vision=None)


@pytest.mark.parametrize("name", ["UniWorldTextEncode", "UniWorldRouteCLIP"])
def test_reserved_words_are_refused(name: str) -> None:
    check = NODE_CLASS_MAPPINGS[name].VALIDATE_INPUTS
    assert check(prompt="Make it snow.") is True
    assert "<|im_end|>" in str(check(prompt="a <|im_end|>"))
