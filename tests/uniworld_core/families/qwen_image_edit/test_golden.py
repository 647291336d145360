"""Goldens of Edit-R1: true guidance, Qwen-Image's noise levels, and rollouts of a tiny model (UNIWORLD_GOLDEN_EDITR1)."""

from __future__ import annotations

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


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_golden_rollout(editr1_pipes: Any, scale: float) -> None:
    if not has_qwen_image():
        pytest.skip("the installed diffusers is too old for Qwen-Image")
    values = editr1_pipes.of("qwen")
    transformer = diffusers.QwenImageTransformer2DModel.from_config(editr1_pipes.settings["qwen_transformer_config"])
    transformer.load_state_dict(editr1_pipes.of("qwen_transformer"))
    dit = QwenImageDiT(transformer.eval())
    h, w = (side // 8 for side in values[f"cfg{scale}_image"].shape[-2:])

    def latent(tokens_BNK: torch.Tensor) -> torch.Tensor:
        return unpack(tokens_BNK, h, w, 2)[:, :, None]

    negative = Condition(values["negative_embeds"], mask=values["negative_mask"].bool())
    condition = Condition(
        values["prompt_embeds"],
        mask=values["mask"].bool(),
        references=(latent(values["image_latents"]),),
        negative=negative,
    )
    noise, steps = latent(values["noise"]), [values["noise"]]
    sigmas = flow.schedule(len(values["sigmas"]) - 1, values["noise"].shape[1], dit.shift)
    torch.testing.assert_close(sigmas, values["sigmas"], rtol=0, atol=1e-6)
    with torch.no_grad():
        velocity = dit.velocity_for(condition, scale, noise.shape)
        flow.dpm2(velocity, noise, values["sigmas"], lambda step: steps.append(pack(step.x[:, :, 0], 2)))
    torch.testing.assert_close(torch.stack(steps, dim=1), values[f"cfg{scale}_latents"], rtol=0, atol=1e-5)
