"""Train the routing head (`task_head_final.pt`), which decides between painting and answering; the VLM is frozen.

Published: serve/cli.py reads it at the last `assistant` token; Linear, SiLU, Dropout, Linear.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ...uniworld_core.backbones.qwen_vl import VLM
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.projectors import TASK_HEAD_FILE
from ..files import write_atomic

DROPOUT = 0.3  # the published head's
EXPANSION = 3  # hidden width relative to the VLM's; published: 10240 for 3584


@dataclass(frozen=True)
class RoutingExample:
    """A prompt with its pictures, and whether the answer is a picture."""

    prompt: str
    pictures: Sequence[Image.Image]
    paint: bool


def assistant_states(vlm: VLM, items: Sequence[RoutingExample], batch: int = 64) -> Tensor:
    """Return the hidden states that the head reads, (items, D) float32."""
    states = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        inputs = vlm.inputs([item.prompt for item in part], [item.pictures for item in part])
        states.append(vlm.assistant_states(inputs, vlm.hidden_states(inputs)).cpu())
    return torch.cat(states)


def train_task_head(
    vlm: VLM,
    items: Iterable[RoutingExample],
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> nn.Sequential:
    """Train a head on the VLM's hidden states of these prompts.

    Args:
        vlm: the frozen VLM.
        items: prompts of both kinds, about the same number of each.
        steps: optimizer steps.
        batch_size: prompts per step.
        learning_rate: initial learning rate; a cosine schedule decays it to 0.
        seed: seed of initialization, batches and dropout.
        progress: called with the step, counted from 1, and its loss.

    Raises:
        UniWorldError: all prompts are of the same kind.
    """
    known = list(items)
    if len({item.paint for item in known}) != 2:
        raise UniWorldError(
            f"All {len(known)} prompts have the same kind of answer: give prompts for pictures and prompts for text."
        )
    wanted = torch.tensor([int(item.paint) for item in known])
    states = assistant_states(vlm, known)
    width = states.shape[1]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(
            nn.Linear(width, EXPANSION * width), nn.SiLU(), nn.Dropout(DROPOUT), nn.Linear(EXPANSION * width, 2)
        )
        optimizer = torch.optim.AdamW(head.parameters(), learning_rate)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            chosen = torch.randint(len(states), (batch_size,), generator=generator)
            loss = nn.functional.cross_entropy(head(states[chosen]), wanted[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            if progress is not None:
                progress(step + 1, float(loss.detach()))
    return head.eval().requires_grad_(False)


def save_task_head(head: nn.Sequential, checkpoint: Path) -> None:
    """Write the head atomically into a checkpoint's folder, under its published name.

    Raises:
        UniWorldError: the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(head.state_dict(), buffer)
    write_atomic(checkpoint / TASK_HEAD_FILE, buffer.getvalue())
