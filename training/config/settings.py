"""Settings of a training run: frozen dataclasses that validate their values, one for each table of the TOML file.

Missing keys have the defaults below. Unknown keys are errors, so that a typo does not waste days of training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS
from ...uniworld_core.editing.masks import METHODS
from ...uniworld_core.editing.weights import WEIGHT_FUNCTION, WEIGHT_FUNCTIONS
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE, STEPS
from ...uniworld_core.images.sizes import DEFAULT_AREA, DEFAULT_RATIOS, RATIO_SETS
from ..objective.trainable import TRAINABLE_PARTS

DTYPES = ("auto", "bfloat16", "float32")
OPTIMIZERS = ("adamw", "prodigy", "muon")
SCHEDULES = ("constant", "constant_with_warmup", "cosine")
ENGINES = ("data", "fsdp")
DEVICES = ("auto", "cpu", "cuda")
NO_WEIGHT = "none"


@dataclass(frozen=True)
class ModelSettings:
    """The checkpoint that training starts from.

    Attributes:
        checkpoint: a folder in UniWorld-V1's format, or the name of a model that ships with the package.
        flux: a FLUX.1-dev folder with the VAE, CLIP and T5; "" uses the shipped model's own.
        siglip: a SigLIP2 folder; "" uses the shipped model's own.
        dtype: dtype of the frozen parts and compute dtype (autocast). "auto" is bfloat16, or float32 on a CPU without
            bfloat16 instructions. Trained parameters are kept in float32.
        start: files or run folders whose weights replace the checkpoint's, applied in order: a FLUX-Redux embedder,
            projectors as safetensors or .bin, or the folder of an earlier stage's run (its EMA weights).
    """

    checkpoint: str = ""
    flux: str = ""
    siglip: str = ""
    dtype: str = "auto"
    start: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class StageSettings:
    """The trainable parts and the loss.

    Attributes:
        parts: names in `trainable.TRAINABLE_PARTS`.
        use_siglip: pass the references' SigLIP features to the DiT; the published stage 1 does not.
        t5_drop: fraction of samples whose T5 tokens are dropped; at 1 T5 is not loaded.
        guidance: FLUX's embedded guidance.
        weight: the edit weight, a name in `masks.WEIGHT_FUNCTIONS`, or "none".
        mask: how the edited region is found, a name in `masks.METHODS`.
        checkpointing: gradient checkpointing: recompute the DiT's blocks in the backward pass to save memory.
    """

    parts: tuple[str, ...] = ("denoise_projector",)
    use_siglip: bool = False
    t5_drop: float = 1.0
    guidance: float = 1.0
    weight: str = WEIGHT_FUNCTION
    mask: str = METHODS[0]
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for part in self.parts:
            one_of("stage.parts", part, TRAINABLE_PARTS)
        check("stage.parts", list(self.parts), bool(self.parts), f"at least one of {', '.join(TRAINABLE_PARTS)}")
        between("stage.t5_drop", self.t5_drop, 0, 1)
        at_least("stage.guidance", self.guidance, 0)
        one_of("stage.weight", self.weight, (*WEIGHT_FUNCTIONS, NO_WEIGHT))
        one_of("stage.mask", self.mask, METHODS)
        if "siglip_projector" in self.parts and not self.use_siglip:
            raise UniWorldError(
                "stage.parts contains siglip_projector, but stage.use_siglip is false, so it would never be used: set "
                "stage.use_siglip = true, or remove the part."
            )


@dataclass(frozen=True)
class DataSettings:
    """The samples.

    Attributes:
        list: a text file of `image_root,annotations.json,need_weight` lines. All paths in a configuration are relative
            to the working directory.
        shards: a folder of WebDataset shards instead of a list.
        cache: folder with the cached outputs of the frozen parts; "" computes them at each step.
        area: approximate area of the painted pictures in pixels.
        ratios: their aspect ratios, a name in `sizes.RATIO_SETS`.
        bad_limit: the run skips up to this many bad samples and stops at the next.
        workers: threads that decode pictures.
    """

    list: str = ""
    shards: str = ""
    cache: str = ""
    area: int = DEFAULT_AREA
    ratios: str = DEFAULT_RATIOS
    bad_limit: int = 100
    workers: int = 2

    def __post_init__(self) -> None:
        at_least("data.area", self.area, 1)
        one_of("data.ratios", self.ratios, RATIO_SETS)
        at_least("data.bad_limit", self.bad_limit, 0)
        at_least("data.workers", self.workers, 1)
        if self.list and self.shards:
            raise UniWorldError(f"data.list ({self.list}) and data.shards ({self.shards}) are both set; set only one.")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its learning rate.

    Attributes:
        name: one of `OPTIMIZERS`. Prodigy estimates the learning rate itself; set `lr` to 1. Muon updates the matrices,
            and AdamW all other parameters.
        schedule: one of `SCHEDULES`.
        warmup: steps of linear warm-up from 0, with "constant_with_warmup" and "cosine".
        clip: maximum global norm of the gradient; 0 disables clipping.
        prodigy_beta3: 0 means the square root of the second beta.
    """

    name: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    clip: float = 1.0
    prodigy_use_bias_correction: bool = True
    prodigy_safeguard_warmup: bool = True
    prodigy_decouple: bool = True
    prodigy_beta3: float = 0.0
    prodigy_d_coef: float = 1.0

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, OPTIMIZERS)
        one_of("optimizer.schedule", self.schedule, SCHEDULES)
        check("optimizer.lr", self.lr, 0 < self.lr < float("inf"), "a number above 0")
        check("optimizer.eps", self.eps, 0 < self.eps < 1, "a small number above 0")
        for beta in self.betas:
            check("optimizer.betas", list(self.betas), 0 <= beta < 1, "two numbers from 0 to below 1")
        check("optimizer.prodigy_beta3", self.prodigy_beta3, 0 <= self.prodigy_beta3 < 1, "0 to below 1")
        for name in ("weight_decay", "warmup", "clip"):
            at_least(f"optimizer.{name}", getattr(self, name), 0)
        if self.warmup and self.schedule == "constant":
            raise UniWorldError(
                f"optimizer.warmup is {self.warmup}, but optimizer.schedule 'constant' has no warm-up: set the schedule to "
                "'constant_with_warmup', or the warm-up to 0."
            )


@dataclass(frozen=True)
class EMASettings:
    """EMA of the trained weights. Its decay at update s is min((1 + s) / (10 + s), `decay`)."""

    decay: float = 0.999

    def __post_init__(self) -> None:
        check("ema.decay", self.decay, 0 <= self.decay < 1, "a number from 0 to below 1")


@dataclass(frozen=True)
class AnyRunSettings:
    """What runs of both kinds have: length, parallelism, checkpoints and logging.

    Attributes:
        steps: total number of steps, each with one update of the optimizer.
        micro_batch_size: samples per forward pass and process; gradients accumulate over the passes of a step.
        seed: seed of the order of the samples and of all random numbers.
        device: "auto" uses a GPU if there is one.
        parallel: "data" replicates the model on every process (DDP), "fsdp" shards it.
        save_every: steps between checkpoints; the last step always saves one.
        keep: number of newest checkpoints to keep; 0 keeps all.
        keep_best: number of further checkpoints to keep, those with the lowest mean loss since the previous checkpoint.
        log_every: steps between lines of metrics; 1 logs every step.
        tensorboard: write TensorBoard event files if it is installed.
        wandb: name of a Weights & Biases project; "" disables it.
    """

    steps: int = 1000
    micro_batch_size: int = 1
    seed: int = 0
    device: str = "auto"
    parallel: str = "data"
    save_every: int = 1000
    keep: int = 3
    keep_best: int = 0
    log_every: int = 1
    tensorboard: bool = True
    wandb: str = ""

    def __post_init__(self) -> None:
        one_of("run.parallel", self.parallel, ENGINES)
        one_of("run.device", self.device, DEVICES)
        for name in ("steps", "micro_batch_size", "save_every", "log_every"):
            at_least(f"run.{name}", getattr(self, name), 1)
        for name in ("keep", "keep_best"):
            at_least(f"run.{name}", getattr(self, name), 0)
        between("run.seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class RunSettings(AnyRunSettings):
    """Settings of a run that trains on targets, besides those of `AnyRunSettings`.

    Attributes:
        batch_size: global batch size: samples per step over all processes.
        validate_every: steps between validation sheets; 0 disables validation.
    """

    batch_size: int = 1
    validate_every: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("run.batch_size", self.batch_size, 1)
        at_least("run.validate_every", self.validate_every, 0)


@dataclass(frozen=True)
class ValidationPrompt:
    """A prompt that validation paints, and the files of its reference pictures in order."""

    prompt: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class ValidationSettings:
    """Prompts and sampling of the validation sheet; `size` is the side of the square pictures in pixels."""

    prompts: tuple[ValidationPrompt, ...] = ()
    steps: int = STEPS
    guidance: float = GUIDANCE
    seed: int = 0
    size: int = 512

    def __post_init__(self) -> None:
        at_least("validation.steps", self.steps, 1)
        at_least("validation.guidance", self.guidance, 0)
        between("validation.seed", self.seed, 0, 2**64 - 1)
        fits = self.size >= FLUX_LATENTS.unit and self.size % FLUX_LATENTS.unit == 0
        check("validation.size", self.size, fits, f"a multiple of {FLUX_LATENTS.unit}")


@dataclass(frozen=True)
class Config:
    """The complete configuration of a run, one field per TOML table."""

    model: ModelSettings = field(default_factory=ModelSettings)
    stage: StageSettings = field(default_factory=StageSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema: EMASettings = field(default_factory=EMASettings)
    run: RunSettings = field(default_factory=RunSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)

    def check_complete(self) -> None:
        """Check that the settings without a default, the model and the data, are set. Raises UniWorldError otherwise."""
        if not self.model.checkpoint:
            raise UniWorldError(
                "model.checkpoint is not set: give the UniWorld checkpoint that training starts from "
                "(--set model.checkpoint=FOLDER)."
            )
        if not self.data.list and not self.data.shards:
            raise UniWorldError(
                "Neither data.list nor data.shards is set: give the training data (--set data.list=FILE)."
            )


def check(name: str, value: object, valid: bool, expected: str) -> None:
    """Raise UniWorldError naming a setting, its value and what is expected, unless the value is valid."""
    if not valid:
        raise UniWorldError(f"{name} is {value!r}; it must be {expected}.")


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise UniWorldError unless the value is one of the choices."""
    check(name, value, value in choices, f"one of {', '.join(choices)}")


def at_least(name: str, value: float, least: float) -> None:
    """Raise UniWorldError unless the value is a finite number of at least `least`."""
    check(name, value, least <= value < float("inf"), f"{least} or more")


def between(name: str, value: float, least: float, most: float) -> None:
    """Raise UniWorldError unless the value is in the range, ends included."""
    check(name, value, least <= value <= most, f"from {least} to {most}")
