"""Build model, data and trainable parameters from a configuration."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...uniworld_core import UniWorld
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.loading.dtypes import choose_dtype
from ...uniworld_core.loading.storage import FloatStorage
from ..config.settings import Config
from ..data.cache import Cache, CacheKey
from ..data.encode import FINGERPRINT_VALUES, Encoder, EncodeSettings
from ..data.loader import plan_of
from ..data.plan import Plan
from ..data.published import PublishedSamples
from ..data.samples import Samples
from ..engine.checkpoints import read_with_retry
from ..engine.parallel import World, parallelize
from ..engine.precision import plain_ops
from ..objective.step import DenoiseTower, StepSettings
from ..objective.trainable import check_family, set_trainable
from .initial_weights import (
    find_initial_weights,
    load_initial_weights,
    read_initial_weights,
    read_saved_weights,
    restore_float32,
    save_initial_weights,
)


@dataclass(frozen=True)
class RunData:
    """The samples of a run.

    Attributes:
        source: the samples, or a cache of them.
        plan: their order.
        fingerprint: fingerprint of the annotations and of the image roots as written, so that relative ones may move.
    """

    source: Samples | Cache
    plan: Plan
    fingerprint: str


@dataclass(frozen=True)
class PreparedModel:
    """The model, ready for training.

    Attributes:
        tower: projectors and DiT.
        wrapped: the tower wrapped by DDP or FSDP2, or the tower itself.
        trained: {name in the tower: trainable parameter}, sharded if FSDP2 shards it.
        frozen: fingerprint of everything that does not train, in the tower and in the frozen parts.
    """

    tower: DenoiseTower
    wrapped: nn.Module
    trained: dict[str, nn.Parameter]
    frozen: str


def compute_dtype(config: Config, device: torch.device | str) -> torch.dtype:
    """Return the dtype of the frozen parts and of computation on a device."""
    name = config.model.dtype
    return choose_dtype(None if name == "auto" else getattr(torch, name), device)


def open_encoder(config: Config, device: torch.device | str = "cpu") -> Encoder:
    """Open the frozen parts of the configured model. Weights are loaded lazily, with the first sample.

    Raises:
        UniWorldError: a folder is missing or does not match the model.
    """
    model, stage = config.model, config.stage
    opened = UniWorld.from_pretrained(
        model.checkpoint,
        model.flux or None,
        model.siglip or None,
        device=device,
        storage=FloatStorage(compute_dtype(config, device)),  # quantized weights cannot be trained
        offload="none",
    )
    check_family(opened)
    if opened.flux_folder is None:
        raise UniWorldError("model.flux is not set: give a FLUX.1-dev folder, for its VAE and CLIP.")
    if stage.use_siglip and opened.siglip_folder is None:
        raise UniWorldError("model.siglip is not set, but stage.use_siglip is true: give a SigLIP2 folder.")
    settings = EncodeSettings(
        area=config.data.area,
        ratios=config.data.ratios,
        # A cache always includes SigLIP features if SigLIP is available, so that one cache serves both stages.
        use_siglip=stage.use_siglip or (bool(config.data.cache) and opened.siglip_folder is not None),
        use_t5=stage.t5_drop < 1,
        mask_method=stage.mask,
        weight=stage.weight,
    )
    return Encoder(opened, settings)


def load_frozen_parts(encoder: Encoder) -> list[nn.Module]:
    """Load the weights of the frozen parts now instead of with the first sample.

    Errors in their files then appear before training starts, and random numbers drawn while they are built do not
    depend on when the first sample comes.
    """
    model, settings = encoder.model, encoder.settings
    parts: list[nn.Module] = [model.vlm, model.text.clip, encoder.vae]
    if settings.use_siglip:
        parts.append(model.siglip)
    if settings.use_t5:
        parts.append(model.text.t5)
    return parts


def open_samples(config: Config) -> Samples:
    """Open the samples of `data.list` or `data.shards`. Raises UniWorldError if they cannot be read."""
    if config.data.shards:
        from ..data.shards import ShardSamples

        return ShardSamples(Path(config.data.shards))
    return PublishedSamples(config.data.list)


def open_data(config: Config, encoder: Encoder, keep: Path | None = None) -> RunData:
    """Open the samples of a run, from the cache if one is configured, and plan their order.

    Args:
        config: the configuration.
        encoder: the frozen parts, whose fingerprint the cache must have.
        keep: a file that saves the targets' sizes at the run's first start, so that pictures that are lost or repaired
            later do not change the data of other steps.

    Raises:
        UniWorldError: the data cannot be read, or the cache is incomplete or belongs to other data or another model.
    """
    samples = open_samples(config)
    source: Samples | Cache = samples
    if config.data.cache:
        source = Cache(Path(config.data.cache), CacheKey(encoder.fingerprint, samples.fingerprint))
        if source.missing:
            raise UniWorldError(
                f"The cache {config.data.cache} is missing {source.missing} of {len(source)} samples: run "
                "`uniworld data cache` with this configuration first."
            )
    run, data = config.run, config.data
    return RunData(source, plan_of(source, run.batch_size, run.seed, data.area, data.ratios, keep), samples.fingerprint)


def open_model(
    config: Config, encoder: Encoder, world: World, kept_start: Path | None = None, resumes: bool = False
) -> PreparedModel:
    """Build the tower with its initial weights, wrapped for the processes.

    Args:
        config: the configuration.
        encoder: the frozen parts.
        world: the processes.
        kept_start: the run's file of weights from model.start that do not train. A new run writes it; a resumed run reads
            it instead of model.start.
        resumes: the run resumes; its checkpoint provides the trained parameters afterwards.

    Raises:
        UniWorldError: the model does not have a part of `stage.parts`, or initial weights do not match.
    """
    opened, stage = encoder.model, config.stage
    # Separate copies, because training changes them and the encoder's model must not change.
    projectors, dit = (opened.parts[name].load(opened.storage, opened.device) for name in ("projectors", "dit"))
    tower = DenoiseTower(projectors, dit, StepSettings(stage.use_siglip, stage.t5_drop, stage.guidance))
    training = set_trainable(tower, stage.parts)
    restore_float32(training, opened.parts.network("dit").shards)
    start = read_saved_weights(kept_start) if resumes and kept_start is not None else _read_start(config, world)
    load_initial_weights(tower, start)
    if kept_start is not None and not resumes:
        world.on_rank0(lambda: save_initial_weights(start, training, kept_start))
    if stage.checkpointing:
        dit.transformer.enable_gradient_checkpointing(
            partial(
                checkpoint,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), plain_ops(opened.device, opened.dtype)),
            )
        )
    frozen = _frozen_fingerprint(tower, encoder.frozen_fingerprint(stage.use_siglip))
    wrapped = parallelize(tower, world, opened.dtype)
    # Collected again, because FSDP2 replaces the module's parameters by its own.
    trained = {name: parameter for name, parameter in tower.named_parameters() if parameter.requires_grad}
    return PreparedModel(tower, wrapped, trained, frozen)


def _read_start(config: Config, world: World) -> dict[str, torch.Tensor]:
    """Read model.start. Rank 0 resolves it for all processes, because a run in it may be training and pruning."""
    if world.size == 1:
        return read_with_retry(lambda: find_initial_weights(config.model.start), read_initial_weights)
    found = world.on_rank0(lambda: find_initial_weights(config.model.start))
    return read_initial_weights(world.broadcast(found or []))


def _frozen_fingerprint(tower: DenoiseTower, parts_before: str) -> str:
    digest = hashlib.sha256(parts_before.encode())
    for name, parameter in tower.named_parameters():
        if not parameter.requires_grad:
            first = parameter.detach().flatten()[:FINGERPRINT_VALUES].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + first.numpy().tobytes())
    return digest.hexdigest()[:32]
