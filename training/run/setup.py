"""What a configuration names, opened: the model, the samples or their cache, and the tower."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

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
        source: the samples, or what the frozen parts computed of them.
        plan: their order.
        fingerprint: of the annotations, and of their picture roots as they are written: relative ones may be moved.
    """

    source: Samples | Cache
    plan: Plan
    fingerprint: str


@dataclass(frozen=True)
class PreparedModel:
    """What trains, in its forms.

    Attributes:
        tower: projectors and DiT.
        engine: the tower as the processes train it together.
        trained: {name in the tower: parameter} of what trains, as the engine holds it.
        frozen: fingerprint of all that does not train, of the tower and of the parts before it.
    """

    tower: DenoiseTower
    wrapped: nn.Module
    trained: dict[str, nn.Parameter]
    frozen: str


def compute_dtype(config: Config, device: torch.device | str) -> torch.dtype:
    """The dtype of the frozen parts and of the arithmetic on a device."""
    name = config.model.dtype
    return choose_dtype(None if name == "auto" else getattr(torch, name), device)


def open_encoder(config: Config, device: torch.device | str = "cpu") -> Encoder:
    """The frozen parts of the configured model; weights are read when the first sample needs them.

    Raises:
        UniWorldError: a folder is missing or does not fit.
    """
    model, stage = config.model, config.stage
    opened = UniWorld.from_pretrained(
        model.checkpoint,
        model.flux or None,
        model.siglip or None,
        device=device,
        storage=FloatStorage(compute_dtype(config, device)),  # quantized weights cannot be trained
    )
    check_family(opened)
    if opened.flux_folder is None:
        raise UniWorldError("model.flux is not set: the VAE and CLIP lie in a FLUX.1-dev folder.")
    if stage.use_siglip and opened.siglip_folder is None:
        raise UniWorldError("model.siglip is not set and stage.use_siglip is true: name the SigLIP2 folder.")
    settings = EncodeSettings(
        area=config.data.area,
        ratios=config.data.ratios,
        # A cache holds the features wherever they can be had, so that one serves both stages.
        use_siglip=stage.use_siglip or (bool(config.data.cache) and opened.siglip_folder is not None),
        use_t5=stage.t5_drop < 1,
        mask_method=stage.mask,
        weight=stage.weight,
    )
    return Encoder(opened, settings)


def load_frozen_parts(encoder: Encoder) -> list[nn.Module]:
    """The frozen parts that samples pass, their weights read now and not at the first sample: so what is wrong with them,
    or draws random numbers while it is built, comes before training begins.
    """
    model, settings = encoder.model, encoder.settings
    parts: list[nn.Module] = [model.vlm, model.text.clip, encoder.vae]
    if settings.use_siglip:
        parts.append(model.siglip)
    if settings.use_t5:
        parts.append(model.text.t5)
    return parts


def open_samples(config: Config) -> Samples:
    """The samples of `data.list` or `data.shards`. Raises UniWorldError if they cannot be read."""
    if config.data.shards:
        from ..data.shards import ShardSamples

        return ShardSamples(Path(config.data.shards))
    return PublishedSamples(config.data.list)


def open_data(config: Config, encoder: Encoder, keep: Path | None = None) -> RunData:
    """The samples of a run in their order, out of the cache if one is named.

    Args:
        keep: a file that holds the targets' sizes from the run's first start on, so that a picture which is lost or
            mended meanwhile does not change what other steps see.

    Raises:
        UniWorldError: the data cannot be read, or the cache is of other data or another model, or not finished.
    """
    samples = open_samples(config)
    source: Samples | Cache = samples
    if config.data.cache:
        source = Cache(Path(config.data.cache), CacheKey(encoder.fingerprint, samples.fingerprint))
        if source.missing:
            raise UniWorldError(
                f"The cache {config.data.cache} lacks {source.missing} of {len(source)} samples: run `uniworld data cache` "
                "with this configuration first."
            )
    run, data = config.run, config.data
    return RunData(source, plan_of(source, run.batch_size, run.seed, data.area, data.ratios, keep), samples.fingerprint)


def open_model(
    config: Config, encoder: Encoder, world: World, kept_start: Path | None = None, resumes: bool = False
) -> PreparedModel:
    """The tower with the weights it starts from, in the form that the processes train.

    Args:
        kept_start: the run's file of what model.start gave and does not train; written when a run begins, and read in
            the place of model.start when it goes on.
        resumes: the run goes on, and what trains will be read from its checkpoint.

    Raises:
        UniWorldError: a part that the model has not, or start weights that do not fit.
    """
    opened, stage = encoder.model, config.stage
    # Their own, which change, and not the ones that the model keeps.
    projectors, dit = (opened.parts[name].load(opened.storage, opened.device) for name in ("projectors", "dit"))
    tower = DenoiseTower(projectors, dit, StepSettings(stage.use_siglip, stage.t5_drop, stage.guidance))
    training = set_trainable(tower, stage.parts)
    restore_float32(training, opened.parts.network("dit").shards)
    start = read_saved_weights(kept_start) if resumes and kept_start is not None else _read_start(config, world)
    load_initial_weights(tower, start)
    if kept_start is not None and not resumes:
        world.on_rank0(lambda: save_initial_weights(start, training, kept_start))
    if stage.checkpointing:
        dit.transformer.enable_gradient_checkpointing()
    frozen = _frozen_fingerprint(tower, encoder.frozen_fingerprint(stage.use_siglip))
    wrapped = parallelize(tower, world, opened.dtype)
    # Named anew, since FSDP2 puts its own parameters in the place of what was there.
    trained = {name: parameter for name, parameter in tower.named_parameters() if parameter.requires_grad}
    return PreparedModel(tower, wrapped, trained, frozen)


def _read_start(config: Config, world: World) -> dict[str, torch.Tensor]:
    """What model.start gives, the same in every process, though a run that it names may be in work."""
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
