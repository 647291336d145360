"""One loop for all stand-ins: AdamW, warm-up and cosine, averaged weights, and a state that survives a kill."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ...precision import autocast

BETAS = (0.9, 0.99)
EMA_DECAY = 0.999
WARMUP = 200  # steps
CLIP = 1.0
SAVE_SECONDS = 60.0
LOG_STEPS = 50


class Objective(nn.Module):
    """What trains: models, and the loss of a drawn batch.

    Attributes:
        source: draws a batch from a generator, on the CPU and without touching the module, so that other processes can.
    """

    source: Callable[[np.random.Generator], Any]

    def loss(self, drawn: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what else is worth a line in the log: scalars that are read only when a line is written."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fit:
    """How long and how fast one stand-in trains.

    Attributes:
        name: of its files in the run folder: `NAME.state` and `NAME.jsonl`.
        steps: optimizer steps.
        learning_rate: the highest, after the warm-up; a cosine takes it to a hundredth.
        seed: of its data.
        weight_decay: AdamW's.
        workers: processes that draw batches ahead; 0 draws in this one.
    """

    name: str
    steps: int
    learning_rate: float = 1e-3
    seed: int = 0
    weight_decay: float = 0.01
    workers: int = 0


def learning_rate(fit: Fit, step: int) -> float:
    """Of the step, counted from 0."""
    warm = min(1.0, (step + 1) / min(WARMUP, max(1, fit.steps // 10)))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / fit.steps)))
    return fit.learning_rate * warm * (0.01 + 0.99 * cosine)


def train(
    fit: Fit,
    objective: Objective,
    folder: Path,
    progress: Callable[[str, int, int, dict[str, Any]], None] | None = None,
) -> None:
    """Train `objective` in place and leave it with its averaged weights.

    Goes on from `folder/NAME.state` if it is there: killed and started again, it sees the same data in the same order.

    Args:
        objective: on the device it trains on, in float32.
        progress: called with name, step, steps and the last line of the log.

    Raises:
        ValueError: the loss is not finite; the step is named.
    """
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fit.learning_rate, BETAS, weight_decay=fit.weight_decay)
    average = [parameter.detach().clone() for parameter in parameters]
    state_file, log_file = folder / f"{fit.name}.state", folder / f"{fit.name}.jsonl"
    start = _restore(state_file, objective, optimizer, average)
    saved, began = time.monotonic(), time.monotonic()
    for step, drawn in enumerate(_drawn(fit, objective.source, start), start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(fit, step)
        value, told = objective.loss(drawn)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        _average(average, parameters, min((1 + step) / (10 + step), EMA_DECAY))
        last = step + 1 == fit.steps
        save = last or time.monotonic() - saved > SAVE_SECONDS
        log = last or (step + 1) % LOG_STEPS == 0
        # Reading a number waits for a GPU, so it is not done at every step.
        if (save or log) and not math.isfinite(value.item()):
            raise ValueError(f"The loss of {fit.name} is {value.item()} at step {step + 1}: lower its learning rate.")
        if log:
            rate = (step + 1 - start) / (time.monotonic() - began)
            known = {name: round(number.item(), 4) for name, number in {"loss": value, **told}.items()}
            line = {"step": step + 1, **known, "steps_per_second": round(rate, 3)}
            with log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if progress is not None:
                progress(fit.name, step + 1, fit.steps, line)
        if save:
            _save(state_file, step + 1, objective, optimizer, average)
            saved = time.monotonic()
    with torch.no_grad():
        for parameter, mean in zip(parameters, average):
            parameter.copy_(mean)


def fast_math(device: torch.device | str) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast."""
    return autocast(device, torch.bfloat16)


def bytes_of(pictures: Sequence[Any]) -> Tensor:
    """8-bit pictures as one tensor (B, H, W, 3)."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


def pixels(bytes_BHW3: Tensor, device: torch.device | str) -> Tensor:
    """8-bit pictures (B, H, W, 3) as float32 (B, 3, H, W) in -1..1 on a device."""
    return bytes_BHW3.to(device, non_blocking=True).movedim(-1, 1).float() / 127.5 - 1.0


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Of pictures in -1..1, in decibels."""
    return -10 * torch.log10(F.mse_loss(one.detach().float(), other.float()) / 4 + 1e-10)


class _Steps(Dataset[Any]):
    """Batches by step: the same ones whoever draws them, and however many were drawn before."""

    def __init__(self, fit: Fit, source: Callable[[np.random.Generator], Any], start: int) -> None:
        self.fit, self.source, self.start = fit, source, start

    def __len__(self) -> int:
        return max(0, self.fit.steps - self.start)

    def __getitem__(self, index: int) -> Any:
        return self.source(np.random.default_rng([self.fit.seed, self.start + index]))


def _drawn(fit: Fit, source: Callable[[np.random.Generator], Any], start: int) -> Iterable[Any]:
    return DataLoader(_Steps(fit, source, start), batch_size=None, shuffle=False, num_workers=fit.workers)


def _average(average: list[Tensor], parameters: list[nn.Parameter], decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)


def _restore(file: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> int:
    if not file.is_file():
        return 0
    state = torch.load(file, weights_only=True, map_location=average[0].device)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    for mean, kept in zip(average, state["average"], strict=True):
        mean.copy_(kept)
    return int(state["step"])


def _save(file: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> None:
    beside = file.with_suffix(".partial")
    state = {"step": step, "module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    with beside.open("wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)
