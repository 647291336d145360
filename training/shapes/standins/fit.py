"""The training loop of all stand-ins: AdamW, optionally Muon, warm-up and cosine, EMA, and a state to resume from."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.loading.dtypes import choose_dtype
from ...engine.muon import Muon
from ...engine.precision import autocast
from ...files import atomic_file, read_saved

BETAS = (0.9, 0.99)
EMA_DECAY = 0.999
WARMUP = 200  # steps
CLIP = 1.0
SAVE_SECONDS = 60.0
LOG_STEPS = 50


class Objective(nn.Module):
    """Models and their loss on a batch.

    Attributes:
        source: draws a batch on the CPU from a generator, without the module, so that worker processes can call it.
        ends: substrings of the names of first and last layers, which Muon is not suitable for.
    """

    source: Callable[[np.random.Generator], object]
    ends: tuple[str, ...] = ()

    def loss(self, drawn: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and further metrics as scalar tensors, which are read only when they are logged."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fit:
    """Settings of one stand-in's training.

    Attributes:
        name: name of its files in the run folder, `NAME.state` and `NAME.jsonl`.
        steps: optimizer steps.
        learning_rate: peak learning rate after warm-up; a cosine decays it to a hundredth.
        matrix_rate: peak learning rate of Muon, which trains the matrices between the first and last layers; 0 uses AdamW.
        seed: seed of the data.
        weight_decay: AdamW's weight decay.
        workers: processes that draw batches ahead; 0 draws in this process.
    """

    name: str
    steps: int
    learning_rate: float = 1e-3
    matrix_rate: float = 0.0
    seed: int = 0
    weight_decay: float = 0.01
    workers: int = 0


def schedule(fit: Fit, step: int) -> float:
    """Return the learning rate at a step, counted from 0, relative to its peak."""
    warm = min(1.0, (step + 1) / min(WARMUP, max(1, fit.steps // 10)))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / fit.steps)))
    return warm * (0.01 + 0.99 * cosine)


class FitOptimizer:
    """The optimizer of a fit.

    Muon treats a convolution as the matrix from its whole receptive field to its output channels, through a view of the
    module's parameter.
    """

    def __init__(self, fit: Fit, objective: Objective) -> None:
        named = [(name, one) for name, one in objective.named_parameters() if one.requires_grad]
        self.matrices = [one for name, one in named if fit.matrix_rate and _is_matrix(name, one, objective.ends)]
        self.views = [nn.Parameter(one.detach().flatten(1)) for one in self.matrices]
        taken = {id(one) for one in self.matrices}
        others = [one for _, one in named if id(one) not in taken]
        rates = fit.learning_rate, fit.matrix_rate
        self.optimizer = Muon(self.views, others, *rates, betas=BETAS, weight_decay=fit.weight_decay)
        self.highest = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, share: float) -> None:
        """Perform one step at this fraction of the peak learning rates, and clear the gradients."""
        for matrix, view in zip(self.matrices, self.views):
            view.grad = None if matrix.grad is None else matrix.grad.flatten(1)
            matrix.grad = None
        for group, highest in zip(self.optimizer.param_groups, self.highest):
            group["lr"] = highest * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _is_matrix(name: str, parameter: Tensor, ends: tuple[str, ...]) -> bool:
    return parameter.ndim >= 2 and not any(end in name for end in ends)


def train(
    fit: Fit,
    objective: Objective,
    folder: Path,
    progress: Callable[[str, int, int, Mapping[str, object]], None] | None = None,
) -> None:
    """Train `objective` in place; at the end it has its averaged weights.

    Resumes from `folder/NAME.state` if it exists, with the same data in the same order as an uninterrupted training.

    Args:
        fit: the settings.
        objective: in float32, on its device.
        folder: folder of state and log.
        progress: called with name, step, steps and the last line of the log.

    Raises:
        UniWorldError: the loss is not finite; the message names the step.
    """
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = FitOptimizer(fit, objective)
    average = [parameter.detach().clone() for parameter in parameters]
    state_file, log_file = folder / f"{fit.name}.state", folder / f"{fit.name}.jsonl"
    start = _restore(state_file, objective, optimizer.optimizer, average)
    saved, started = time.monotonic(), time.monotonic()
    for step, drawn in enumerate(_drawn(fit, objective.source, start), start):
        value, metrics = objective.loss(drawn)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step(schedule(fit, step))
        _average(average, parameters, min((1 + step) / (10 + step), EMA_DECAY))
        last = step + 1 == fit.steps
        save = last or time.monotonic() - saved > SAVE_SECONDS
        log = last or (step + 1) % LOG_STEPS == 0
        # Reading the loss synchronizes with the GPU, so it is not read at every step.
        if (save or log) and not math.isfinite(value.item()):
            raise UniWorldError(
                f"The loss of {fit.name} is {value.item()} at step {step + 1}: lower its learning rate."
            )
        if log:
            rate = (step + 1 - start) / (time.monotonic() - started)
            known = {name: round(number.item(), 4) for name, number in {"loss": value, **metrics}.items()}
            line = {"step": step + 1, **known, "steps_per_second": round(rate, 3)}
            with log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if progress is not None:
                progress(fit.name, step + 1, fit.steps, line)
        if save:
            _save(state_file, step + 1, objective, optimizer.optimizer, average)
            saved = time.monotonic()
    with torch.no_grad():
        for parameter, mean in zip(parameters, average):
            parameter.copy_(mean)


def fast_math(device: torch.device | str) -> contextlib.AbstractContextManager[None]:
    """Autocast to the fastest dtype of the device."""
    return autocast(device, choose_dtype(None, device))


def uint8_batch(pictures: Sequence[Image.Image]) -> Tensor:
    """Stack 8-bit pictures into a tensor (B, H, W, 3)."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


def pixels(bytes_BHW3: Tensor, device: torch.device | str) -> Tensor:
    """Convert 8-bit pictures (B, H, W, 3) to float32 (B, 3, H, W) in -1..1 on a device."""
    return bytes_BHW3.to(device, non_blocking=True).movedim(-1, 1).float() / 127.5 - 1.0


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Return the PSNR of pictures in -1..1, in decibels."""
    return -10 * torch.log10(F.mse_loss(one.detach().float(), other.float()) / 4 + 1e-10)


class _Steps(Dataset[object]):
    """Batches by step, independent of the drawing process and of earlier batches."""

    def __init__(self, fit: Fit, source: Callable[[np.random.Generator], object], start: int) -> None:
        self.fit, self.source, self.start = fit, source, start

    def __len__(self) -> int:
        return max(0, self.fit.steps - self.start)

    def __getitem__(self, index: int) -> object:
        return self.source(np.random.default_rng([self.fit.seed, self.start + index]))


def _drawn(fit: Fit, source: Callable[[np.random.Generator], object], start: int) -> Iterable[object]:
    return DataLoader(_Steps(fit, source, start), batch_size=None, shuffle=False, num_workers=fit.workers)


def _average(average: list[Tensor], parameters: list[nn.Parameter], decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)


def _restore(file: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> int:
    if not file.is_file():
        return 0
    return read_saved(file, lambda file: _load(file, module, optimizer, average))


def _load(file: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> int:
    state = torch.load(file, weights_only=True, map_location=average[0].device)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    for mean, kept in zip(average, state["average"], strict=True):
        mean.copy_(kept)
    return int(state["step"])


def _save(file: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> None:
    state = {"step": step, "module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    with atomic_file(file) as out:
        torch.save(state, out)
