"""Dry run: settings, trainable parameters, memory and data of a run."""

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
# Optimizer state per trainable parameter, in float32 values: AdamW has two moments; Prodigy also has the initial value and
# a sum of gradients (prodigyopt's exp_avg, exp_avg_sq, p0, s). Muon has one moment for matrices, which are nearly all
# parameters.
_STATE_PER_PARAMETER = {"adamw": 2, "prodigy": 4, "muon": 1}


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated memory of one process in bytes, by purpose, without activations."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Total in bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run.

    Attributes:
        config: its configuration.
        run: its folder.
        trainable: {tensor name: number of parameters} of the trainable tensors.
        frozen: number of parameters of DiT and projectors that do not train.
        memory: estimated memory of one process.
        processes: number of processes.
        samples: number of samples.
        buckets: {painted size in pixels: number of samples}.
        steps_per_epoch: steps per epoch.
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
        """Return the summary as valid TOML: the settings, followed by comments."""
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
            "# Trainable parameters:",
            *lines,
            f"# Total: {total:,} parameters in {len(self.trainable)} tensors ({by_part}); "
            f"{self.frozen:,} parameters of DiT and projectors are frozen.",
            "",
        ]

    def _memory(self) -> list[str]:
        of = f" of {self.processes}" if self.processes > 1 else ""
        return [
            f"# Estimated memory of each process{of}, without activations:",
            *(f"#   {what:<44}{size / _GIB:>10.3f} GiB" for what, size in self.memory.parts.items()),
            f"#   {'total':<44}{self.memory.total / _GIB:>10.3f} GiB",
            "",
        ]

    def _data(self) -> list[str]:
        run = self.config.run
        return [
            f"# Data: {self.samples:,} samples; {self.steps_per_epoch:,} steps per epoch at batch size {run.batch_size}; "
            f"the run has {run.steps:,} steps, {run.steps / self.steps_per_epoch:.2f} epochs.",
            *(f"#   {size.width} x {size.height}: {count:,}" for size, count in self.buckets.items()),
        ]


def summarize(config: Config, run: Path, samples: Samples, processes: int = 1) -> RunSummary:
    """Summarize a run. Checks the model's files without loading weights, and reads only headers of the data.

    Args:
        config: a complete configuration.
        run: the run's folder; it need not exist.
        samples: the run's data.
        processes: number of processes.

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
        memory=estimate_memory(config, sum(trainable.values()), frozen, _frozen_part_bytes(model, config), processes),
        processes=processes,
        samples=len(samples),
        buckets=plan.counts(),
        steps_per_epoch=plan.steps_per_epoch,
    )


def estimate_memory(config: Config, trained: int, frozen: int, encoders: int, processes: int) -> MemoryEstimate:
    """Estimate the memory of one process.

    Args:
        config: the configuration.
        trained, frozen: number of trainable and frozen parameters of DiT and projectors.
        encoders: size in bytes of the frozen parts that encode samples.
        processes: number of processes. "fsdp" shards DiT and projectors over them; the EMA is always sharded.
    """
    sharded = config.run.parallel == "fsdp" and processes > 1
    share = processes if sharded else 1
    # FSDP2 needs a single dtype, so frozen parameters are float32 too if they are sharded.
    frozen_dtype = "float32" if sharded else _dtype_name(config)
    state = _STATE_PER_PARAMETER[config.optimizer.name]
    return MemoryEstimate(
        {
            "trainable parameters (float32)": math.ceil(trained / share) * 4,
            f"frozen parameters ({frozen_dtype})": math.ceil(frozen / share) * _BYTES[frozen_dtype],
            "gradients (float32)": math.ceil(trained / share) * 4,
            f"{config.optimizer.name} ({state} float32 per parameter)": math.ceil(trained / share) * 4 * state,
            "EMA (float32, sharded)": math.ceil(trained / processes) * 4,
            "VLM, SigLIP, VAE, CLIP and T5": encoders,
        }
    )


def _dtype_name(config: Config) -> str:
    """Return the compute dtype that `compute_dtype` chooses, without touching the device."""
    on_cpu = config.run.device == "cpu" or (config.run.device == "auto" and not torch.cuda.is_available())
    if config.model.dtype != "auto":
        return config.model.dtype
    chosen = choose_dtype(None, "cpu") if on_cpu else torch.bfloat16
    return str(chosen).removeprefix("torch.")


def _frozen_part_bytes(model: UniWorld, config: Config) -> int:
    """Return the size of the frozen parts that encode samples; 0 with a cache, which replaces them."""
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
