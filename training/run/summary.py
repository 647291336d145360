"""What a run would do, told before it does anything: its settings, what trains, the memory it takes, and its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...uniworld_core import UniWorld
from ...uniworld_core.backbones.flux_dit import DiT
from ...uniworld_core.images.sizes import Size
from ...uniworld_core.loading.dtypes import choose_dtype
from ..config.file import to_toml
from ..config.settings import Config
from ..data.loader import plan_of
from ..data.samples import Samples
from ..objective.step import DenoiseTower, StepSettings
from ..objective.trainable import check_family, part_of, set_trainable

_GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}
# Float32 numbers that an optimizer keeps for each number it trains: two moments, and Prodigy also where the number
# began and a sum of its gradients (prodigyopt's state: exp_avg, exp_avg_sq, p0, s). Muon keeps one moment of matrices,
# which are nearly all that trains.
_OPTIMIZER_NUMBERS = {"adamw": 2, "prodigy": 4, "muon": 1}


@dataclass(frozen=True)
class MemoryEstimate:
    """An estimate of one process's memory in bytes, by what it is for; activations come on top."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class RunSummary:
    """What a run would do.

    Attributes:
        config: all of its settings.
        run: its folder.
        trainable: {name of a tensor: its numbers} of what trains.
        frozen: numbers of the DiT and the projectors that do not train.
        memory: of one process.
        processes: how many there are.
        samples: how many there are to paint.
        buckets: {painted size in pixels: samples}.
        steps_per_epoch: until every sample was met.
    """

    config: Config
    run: Path
    trainable: Mapping[str, int]
    frozen: int
    memory: MemoryEstimate
    processes: int
    samples: int
    buckets: Mapping[Size, int]
    steps_per_epoch: int

    def text(self) -> str:
        """All of it for a person; the settings are TOML that gives the same run again."""
        return "\n".join([*self._settings(), *self._trainable(), *self._memory(), *self._data()])

    def _settings(self) -> list[str]:
        return [f"# The run {self.run}", "", to_toml(self.config)]

    def _trainable(self) -> list[str]:
        lines = [f"# {name:<96} {count:>14,}" for name, count in self.trainable.items()]
        parts: dict[str, int] = {}
        for name, count in self.trainable.items():
            part = str(part_of(name, self.config.stage.parts))
            parts[part] = parts.get(part, 0) + count
        total = sum(self.trainable.values())
        by_part = ", ".join(f"{part} {count:,}" for part, count in parts.items())
        return [
            "# What trains:",
            *lines,
            f"# Together {len(self.trainable)} tensors of {total:,} numbers ({by_part}); "
            f"{self.frozen:,} numbers of the DiT and the projectors stay as they are.",
            "",
        ]

    def _memory(self) -> list[str]:
        of = f" of {self.processes}" if self.processes > 1 else ""
        return [
            f"# Memory of each process{of}, without activations (an estimate):",
            *(f"#   {what:<44}{size / _GIB:>10.3f} GiB" for what, size in self.memory.parts.items()),
            f"#   {'together':<44}{self.memory.total / _GIB:>10.3f} GiB",
            "",
        ]

    def _data(self) -> list[str]:
        run = self.config.run
        return [
            f"# Data: {self.samples:,} samples; an epoch is {self.steps_per_epoch:,} steps of {run.batch_size}, "
            f"and the run {run.steps:,} steps, {run.steps / self.steps_per_epoch:.2f} epochs.",
            *(f"#   {size.width} x {size.height}: {count:,}" for size, count in self.buckets.items()),
        ]


def summarize(config: Config, run: Path, samples: Samples, processes: int = 1) -> RunSummary:
    """Summarise a run. The model's files are checked and no weight is read; of the data, headers alone.

    Args:
        config: complete.
        run: its folder, which need not be there.
        samples: its data.
        processes: how many it is spread over.

    Raises:
        UniWorldError: the model or the data cannot be used.
    """
    model = UniWorld.from_pretrained(config.model.checkpoint, config.model.flux or None, config.model.siglip or None)
    check_family(model)
    projectors, transformer = (model.parts.network(name).build() for name in ("projectors", "dit"))
    tower = DenoiseTower(projectors, DiT(transformer), StepSettings())
    chosen = set_trainable(tower, config.stage.parts)
    trainable = {name: parameter.numel() for name, parameter in chosen.items()}
    frozen = sum(parameter.numel() for parameter in tower.parameters()) - sum(trainable.values())
    plan = plan_of(samples, config.run.batch_size, config.run.seed, config.data.area, config.data.ratios)
    return RunSummary(
        config=config,
        run=run,
        trainable=trainable,
        frozen=frozen,
        memory=estimate_memory(config, sum(trainable.values()), frozen, _encoder_bytes(model, config), processes),
        processes=processes,
        samples=len(samples),
        buckets=plan.counts(),
        steps_per_epoch=plan.steps_per_epoch,
    )


def estimate_memory(config: Config, trained: int, frozen: int, readers: int, processes: int) -> MemoryEstimate:
    """The memory of one process.

    Args:
        trained, frozen: numbers of the DiT and the projectors that train, and that do not.
        readers: bytes of the parts that read samples.
        processes: "fsdp" spreads DiT and projectors over them; the EMA is spread always.
    """
    spread = config.run.parallel == "fsdp" and processes > 1
    share = processes if spread else 1
    # FSDP2 takes tensors of one type, so what does not train is in float32 as well where it is spread.
    still = "float32" if spread else _dtype_name(config)
    numbers = _OPTIMIZER_NUMBERS[config.optimizer.name]
    return MemoryEstimate(
        {
            "weights that train (float32)": math.ceil(trained / share) * 4,
            f"weights that stay ({still})": math.ceil(frozen / share) * _BYTES[still],
            "gradients (float32)": math.ceil(trained / share) * 4,
            f"{config.optimizer.name} ({numbers} float32 a number)": math.ceil(trained / share) * 4 * numbers,
            "EMA (float32, this process's part)": math.ceil(trained / processes) * 4,
            "VLM, SigLIP, VAE, CLIP and T5": readers,
        }
    )


def _dtype_name(config: Config) -> str:
    """The dtype of the arithmetic, as `compute_dtype` chooses it, without a need for the device itself."""
    on_cpu = config.run.device == "cpu" or (config.run.device == "auto" and not torch.cuda.is_available())
    if config.model.dtype != "auto":
        return config.model.dtype
    chosen = choose_dtype(None, "cpu") if on_cpu else torch.bfloat16
    return str(chosen).removeprefix("torch.")


def _encoder_bytes(model: UniWorld, config: Config) -> int:
    """What the parts take that read samples; nothing where a cache holds what they would compute."""
    if config.data.cache or model.flux_folder is None:
        return 0
    size = _BYTES[_dtype_name(config)]
    sizes = {"vlm": size, "clip": size, "vae": 4}  # the VAE in float32, as published
    if config.stage.t5_drop < 1:
        sizes["t5"] = size
    if config.stage.use_siglip and model.siglip_folder is not None:
        sizes["siglip"] = size
    return sum(
        parameter.numel() * each
        for name, each in sizes.items()
        for parameter in model.parts.network(name).build().parameters()
    )
