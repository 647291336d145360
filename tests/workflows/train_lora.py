"""Train the LoRA of the workflow `native_lora`: nano learns to paint inverted images.

    python tests/workflows/train_lora.py [--steps N]

A few minutes on one core. The file has PEFT's names and no alpha, so that its strength is the loader's alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize
from uniworld.training.shapes.tasks.tasks import make_task
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.images.pictures import to_image
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER
from uniworld.uniworld_core.sampling import flow

FILE = SHIPPED_FOLDER / "nano" / "loras" / "uniworld_nano_negative.safetensors"
RANK, BATCH, RATE, GUIDANCE = 4, 8, 2e-3, 3.5
PICTURES = 256
# Ends of the layers' names, in single and in double blocks.
LAYERS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out")


class LowRank(nn.Module):
    """Adds up @ down to a weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(RANK, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def add_low_rank(transformer: nn.Module) -> dict[str, LowRank]:
    """Make the weights of the blocks' layers trainable in low rank; {layer: what is trained}."""
    added = {}
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, nn.Linear) and "transformer_blocks." in name and name.endswith(LAYERS):
            added[name] = LowRank(layer.weight)
            parametrize.register_parametrization(layer, "weight", added[name])
    return added


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    model = UniWorld.from_pretrained("nano", dtype=torch.float32)
    rng = np.random.default_rng(0)
    tasks = [make_task("text_to_image", rng, "train", 128) for _ in range(PICTURES)]
    dit, vae = model.dit, model.vae
    with torch.no_grad():
        targets = [to_image([ImageOps.invert(task.target.convert("RGB"))]) for task in tasks]
        latents = torch.cat([dit.latent_format.to_model(vae.encode(target)) for target in targets])
        conditions = [model.encode(task.prompt, use_t5=False) for task in tasks]
    dit.requires_grad_(False)
    added = add_low_rank(dit.transformer)
    parameters = [parameter for part in added.values() for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        # One condition at a time: prompts differ in length.
        chosen = rng.integers(0, PICTURES, BATCH)
        loss = 0.0
        for index in chosen:
            latent = latents[index : index + 1]
            noise = torch.randn_like(latent)
            tokens = dit.latent_format.token_count(latent.shape)
            sigma = dit.shift.apply(torch.randn(1).sigmoid(), tokens)
            noisy = flow.add_noise(latent, noise, sigma[:, None, None, None])
            velocity = dit.velocity(noisy, sigma, conditions[index], GUIDANCE)
            one = ((velocity - (noise - latent)) ** 2).mean() / BATCH
            one.backward()
            loss += float(one.detach())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss:.4f}", flush=True)
    tensors = {}
    for name, part in added.items():
        tensors[f"transformer.{name}.lora_A.weight"] = part.down.detach().bfloat16().contiguous()
        tensors[f"transformer.{name}.lora_B.weight"] = part.up.detach().bfloat16().contiguous()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, FILE, metadata={"format": "pt", "base_model": "UniWorld nano"})
    print(f"{FILE}: {Path(FILE).stat().st_size} bytes")


if __name__ == "__main__":
    main()
