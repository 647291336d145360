"""The family computes what diffusers' own pipelines compute on the same folder."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.picture_processor import pil_processor
from uniworld.uniworld_core.sampling.packing import pack

SIDE, STEPS = 64, 3


class Processor:
    """In place of Qwen2VLProcessor, which transformers 5 cannot make without torchvision."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        settings = json.loads((folder / "processor" / "preprocessor_config.json").read_text(encoding="utf-8"))
        kinds = ("image_processor_type", "processor_class")
        self.pictures = pil_processor("Qwen2VLImageProcessor")(**{k: v for k, v in settings.items() if k not in kinds})
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], images: Any, padding: bool, return_tensors: str) -> Any:
        made = self.pictures(images=images, return_tensors="pt")
        tokens = iter((made["image_grid_thw"].prod(dim=1) // 4).tolist())
        pad = "<|image_pad|>"
        texts = [re.sub(re.escape(pad), lambda _: pad * next(tokens), item) for item in text]
        ids = self.tokenizer(texts, padding=padding, return_tensors="pt")
        made.update({"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]})
        return made


@pytest.fixture(scope="module")
def model(qwen_edit: Path) -> UniWorld:
    return UniWorld.from_pretrained(qwen_edit, dtype=torch.float32)


@pytest.fixture(scope="module")
def make_pipe(qwen_edit: Path, model: UniWorld) -> Iterator[Callable[[str], Any]]:
    import diffusers
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
    from transformers import Qwen2_5_VLForConditionalGeneration

    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(qwen_edit / "text_encoder")
    forward = encoder.forward

    def with_picture_positions(*arguments: Any, **options: Any) -> Any:
        # transformers 5 falls back to the positions of text without these, and diffusers does not pass them on.
        if "mm_token_type_ids" in inspect.signature(forward).parameters:
            options["mm_token_type_ids"] = (options["input_ids"] == encoder.config.image_token_id).int()
        return forward(*arguments, **options)

    encoder.forward = with_picture_positions
    parts = {
        "vae": diffusers.AutoencoderKLQwenImage.from_pretrained(qwen_edit / "vae"),
        "transformer": diffusers.QwenImageTransformer2DModel.from_pretrained(qwen_edit / "transformer"),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(qwen_edit / "scheduler"),
        "text_encoder": encoder,
        "tokenizer": None,
        "processor": Processor(qwen_edit, model.part("understanding").tokenizer),
    }

    def make(name: str) -> Any:
        pipe = getattr(diffusers, name)(**parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    area, plus.VAE_IMAGE_SIZE = plus.VAE_IMAGE_SIZE, SIDE * SIDE
    yield make
    plus.VAE_IMAGE_SIZE = area


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def painted(model: UniWorld, pictures: list[Image.Image], noise: torch.Tensor, scale: float, prompt: str) -> Any:
    condition = model.encode(prompt, model.reference(pictures, use_siglip=False))
    z = model.sample(condition, noise.shape[-2] * 8, noise.shape[-1] * 8, STEPS, guidance=scale, noise=noise)
    return condition, z, model.decode(z)


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [([(50, 70)], 1.0), ([(50, 70)], 4.0), ([(64, 64), (40, 90)], 2.5)],
    ids=["one", "cfg", "several"],
)
def test_the_pipeline_of_2509(
    model: UniWorld, make_pipe: Callable[[str], Any], sizes: list[tuple[int, int]], scale: float
) -> None:
    pipe = make_pipe("QwenImageEditPlusPipeline")
    pictures = [picture(*size, seed) for seed, size in enumerate(sizes)]
    prompt = "make it blue, {please}"
    noise = torch.randn(1, 16, 1, 8, 12, generator=torch.manual_seed(3))
    settings = {"height": 64, "width": 96, "num_inference_steps": STEPS, "latents": pack(noise[:, :, 0], 2)}
    theirs = {
        kind: pipe(pictures, prompt, " ", true_cfg_scale=scale, output_type=kind, **settings).images
        for kind in ("latent", "np")
    }
    _, z, image = painted(model, pictures, noise, scale, prompt)
    latents = pack(model.latent_format.to_model(z)[:, :, 0], 2)
    assert torch.allclose(latents, theirs["latent"], atol=1e-5)
    assert torch.allclose(image, torch.as_tensor(theirs["np"]), atol=1e-5)

    # The numbers are large enough to show a difference.
    others = [
        painted(model, [picture(50, 70, 9), *pictures[1:]], noise, scale, prompt),
        painted(model, pictures, noise, scale, "red"),
    ]
    others += [painted(model, pictures, noise, scale + 1.0, prompt)] if scale > 1.0 else []
    for _, other, _ in others:
        assert (model.latent_format.to_model(other) - model.latent_format.to_model(z)).abs().max() > 1e-4


def test_the_text_of_2509(model: UniWorld, make_pipe: Callable[[str], Any]) -> None:
    pipe = make_pipe("QwenImageEditPlusPipeline")
    for pictures in ([picture(384, 384)], [picture(384, 384), picture(384, 384, 1)]):
        with torch.no_grad():
            theirs, mask = pipe.encode_prompt("a prompt", pictures)
        ours = model.encode("a prompt", model.reference(pictures, use_siglip=False)).tokens
        assert mask is None
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert theirs.std().item() > 0.5


def test_the_pipeline_of_the_first_release(
    qwen_edit_copy: Path, make_pipe: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as first

    index = qwen_edit_copy / "model_index.json"
    index.write_text(json.dumps({"_class_name": "QwenImageEditPipeline"}), encoding="utf-8")
    model = UniWorld.from_pretrained(qwen_edit_copy, dtype=torch.float32)
    calculate = first.calculate_dimensions
    monkeypatch.setattr(first, "calculate_dimensions", lambda area, ratio: calculate(SIDE * SIDE, ratio))
    pipe, noise = make_pipe("QwenImageEditPipeline"), torch.randn(1, 16, 1, 8, 8, generator=torch.manual_seed(3))
    theirs = pipe(
        picture(50, 70),
        "make it blue",
        " ",
        true_cfg_scale=4.0,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        latents=pack(noise[:, :, 0], 2),
        output_type="np",
    ).images
    _, _, image = painted(model, [picture(50, 70)], noise, 4.0, "make it blue")
    assert torch.allclose(image, torch.as_tensor(theirs), atol=1e-5)
