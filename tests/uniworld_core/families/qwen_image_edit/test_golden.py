"""Goldens of Edit-R1: true guidance, Qwen-Image's noise levels, and rollouts of a tiny model (UNIWORLD_GOLDEN_EDITR1)."""

from __future__ import annotations

import math
import re
from typing import Any

import diffusers
import pytest
import torch
from uniworld.uniworld_core import Condition
from uniworld.uniworld_core.backbones.qwen_image_classes import has_qwen_image
from uniworld.uniworld_core.backbones.qwen_image_dit import QWEN_IMAGE_SHIFT, QwenImageDiT
from uniworld.uniworld_core.sampling import flow
from uniworld.uniworld_core.sampling.guidance import true_cfg
from uniworld.uniworld_core.sampling.packing import pack, unpack


def test_golden_true_guidance(editr1_golden: Any) -> None:
    ((_, settings, tensors),) = editr1_golden.cases("true_cfg")
    for scale in settings["scales"]:
        ours = true_cfg(tensors["positive"], tensors["negative"], scale)
        torch.testing.assert_close(ours, tensors[f"scale{scale}"], rtol=1e-6, atol=1e-6)


def test_golden_noise_levels(editr1_golden: Any) -> None:
    for _, settings, tensors in editr1_golden.cases("schedule_qwen"):
        ours = flow.schedule(settings["steps"], settings["tokens"], QWEN_IMAGE_SHIFT)
        torch.testing.assert_close(ours, tensors["sigmas"], rtol=0, atol=1e-6)


def test_golden_rollouts(editr1_pipes: Any) -> None:
    if not has_qwen_image():
        pytest.skip("the installed diffusers is too old for Qwen-Image")
    values = editr1_pipes.of("qwen")
    transformer = diffusers.QwenImageTransformer2DModel.from_config(editr1_pipes.settings["qwen_transformer_config"])
    transformer.load_state_dict(editr1_pipes.of("qwen_transformer"))
    dit = QwenImageDiT(transformer.eval())
    # Frames, rows and columns of the tokens of the painted picture and of its references.
    shapes = editr1_pipes.settings["qwen_text"]["img_shapes"][0]

    def latent(tokens_BNK: torch.Tensor, shape: list[int]) -> torch.Tensor:
        return unpack(tokens_BNK, 2 * shape[1], 2 * shape[2], 2)[:, :, None]

    references = values["image_latents"].split([math.prod(shape) for shape in shapes[1:]], dim=1)
    condition = Condition(
        values["prompt_embeds"],
        mask=values["mask"].bool(),
        references=tuple(map(latent, references, shapes[1:])),
        negative=Condition(values["negative_embeds"], mask=values["negative_mask"].bool()),
    )
    noise = latent(values["noise"], shapes[0])
    sigmas = flow.schedule(len(values["sigmas"]) - 1, values["noise"].shape[1], dit.shift)
    torch.testing.assert_close(sigmas, values["sigmas"], rtol=0, atol=1e-6)
    scales = [match[1] for key in values if (match := re.fullmatch(r"cfg(.+)_latents", key))]
    assert scales
    for scale in scales:
        steps = [values["noise"]]
        with torch.no_grad():
            velocity = dit.velocity_for(condition, float(scale), noise.shape)
            flow.dpm2(
                velocity, noise, values["sigmas"], lambda step, steps=steps: steps.append(pack(step.x[:, :, 0], 2))
            )
        torch.testing.assert_close(torch.stack(steps, dim=1), values[f"cfg{scale}_latents"], rtol=0, atol=1e-5)
