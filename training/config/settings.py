"""What a training run is: settings from a TOML file, as frozen dataclasses whose values are checked.

A file has a table for each section of `Config`; what it leaves out has the defaults below. Keys that no section has
are errors, so that a mistyped one never trains the wrong thing for days.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS
from ...uniworld_core.editing.masks import METHODS, WEIGHT_FUNCTIONS
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE, STEPS
from ...uniworld_core.images.sizes import DEFAULT_AREA, DEFAULT_RATIOS, RATIO_SETS
from ..objective.trainable import PARTS

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
        flux: a FLUX.1-dev folder, for the VAE, CLIP and T5; "" for a shipped model's own.
        siglip: a SigLIP2 folder; "" for a shipped model's own.
        dtype: of the frozen parts and of the arithmetic (autocast); "auto" is bfloat16, or float32 on a CPU without
            instructions for bfloat16. What trains is kept in float32.
        start: files or run folders whose weights replace the checkpoint's, in order: a FLUX-Redux embedder,
            projectors as safetensors or .bin, the folder of an earlier stage's run (its EMA weights).
    """

    checkpoint: str = ""
    flux: str = ""
    siglip: str = ""
    dtype: str = "auto"
    start: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _one_of("model.dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class StageSettings:
    """What trains, and on which loss.

    Attributes:
        parts: names in `trainable.PARTS`.
        use_siglip: give the references' SigLIP features to the DiT; the published stage 1 does not.
        t5_drop: share of samples without their T5 tokens; at 1 T5 is not used at all.
        guidance: FLUX's embedded guidance.
        weight: the edit weight, a name in `masks.WEIGHT_FUNCTIONS`, or "none".
        mask: how the edited part is found, a name in `masks.METHODS`.
        checkpointing: compute the DiT's blocks again in the backward pass instead of keeping them.
    """

    parts: tuple[str, ...] = ("denoise_projector",)
    use_siglip: bool = False
    t5_drop: float = 1.0
    guidance: float = 1.0
    weight: str = "logarithmic"
    mask: str = "code"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for part in self.parts:
            _one_of("stage.parts", part, PARTS)
        _check("stage.parts", list(self.parts), bool(self.parts), f"at least one of {', '.join(PARTS)}")
        _between("stage.t5_drop", self.t5_drop, 0, 1)
        _at_least("stage.guidance", self.guidance, 0)
        _one_of("stage.weight", self.weight, (*WEIGHT_FUNCTIONS, NO_WEIGHT))
        _one_of("stage.mask", self.mask, METHODS)
        if "siglip_projector" in self.parts and not self.use_siglip:
            raise UniWorldError(
                "stage.parts trains siglip_projector while stage.use_siglip is false, and it would never be used: "
                "set stage.use_siglip = true, or take the part out."
            )


@dataclass(frozen=True)
class DataSettings:
    """The samples.

    Attributes:
        list: the text file of `image_root,annotations.json,need_weight` lines. Paths here and elsewhere are relative
            to the working folder.
        shards: a folder of WebDataset shards instead of a list.
        cache: the folder of what the frozen parts computed; "" computes it anew at each step.
        area: pixels of the painted picture, about.
        ratios: its aspect ratios, a name in `sizes.RATIO_SETS`.
        bad_limit: so many bad samples are skipped in a run; one more stops it.
        workers: threads that prepare batches ahead.
    """

    list: str = ""
    shards: str = ""
    cache: str = ""
    area: int = DEFAULT_AREA
    ratios: str = DEFAULT_RATIOS
    bad_limit: int = 100
    workers: int = 2

    def __post_init__(self) -> None:
        _at_least("data.area", self.area, 1)
        _one_of("data.ratios", self.ratios, RATIO_SETS)
        _at_least("data.bad_limit", self.bad_limit, 0)
        _at_least("data.workers", self.workers, 1)
        if self.list and self.shards:
            raise UniWorldError(f"data.list ({self.list}) and data.shards ({self.shards}) are both given; name one.")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its learning rate.

    Attributes:
        name: one of `OPTIMIZERS`. Prodigy finds the rate itself, and takes 1 for `lr`; Muon is for matrices, and leaves
            the rest to AdamW.
        schedule: one of `SCHEDULES`.
        warmup: steps over which the rate rises from 0, with "constant_with_warmup" and "cosine".
        clip: largest global norm of the gradient; 0 does not clip.
        prodigy_beta3: 0 takes the square root of the second beta.
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
        _one_of("optimizer.name", self.name, OPTIMIZERS)
        _one_of("optimizer.schedule", self.schedule, SCHEDULES)
        _check("optimizer.lr", self.lr, 0 < self.lr < float("inf"), "a number above 0")
        _check("optimizer.eps", self.eps, 0 < self.eps < 1, "a small number above 0")
        for beta in self.betas:
            _check("optimizer.betas", list(self.betas), 0 <= beta < 1, "two numbers from 0 to below 1")
        _check("optimizer.prodigy_beta3", self.prodigy_beta3, 0 <= self.prodigy_beta3 < 1, "0 to below 1")
        for name in ("weight_decay", "warmup", "clip"):
            _at_least(f"optimizer.{name}", getattr(self, name), 0)
        if self.warmup and self.schedule == "constant":
            raise UniWorldError(
                f"optimizer.warmup is {self.warmup} and optimizer.schedule 'constant' has no warm-up: "
                "set the schedule to 'constant_with_warmup', or the warm-up to 0."
            )


@dataclass(frozen=True)
class EMASettings:
    """The average of the trained weights. `decay`: its limit; at update s it is min((1 + s) / (10 + s), decay)."""

    decay: float = 0.999

    def __post_init__(self) -> None:
        _check("ema.decay", self.decay, 0 <= self.decay < 1, "a number from 0 to below 1")


@dataclass(frozen=True)
class RunSettings:
    """How long the run goes, and how it is spread and kept.

    Attributes:
        steps: optimizer steps in all.
        batch_size: samples of one step over all processes together.
        micro_batch_size: samples that one process takes at a time; the rest accumulates.
        seed: of the data's order and of every random number.
        device: "auto" takes a GPU where there is one.
        parallel: "data" copies the model to every process, "fsdp" spreads its weights over them.
        save_every: steps between checkpoints; there is always one at the end.
        keep: newest checkpoints that stay; 0 keeps all.
        keep_best: besides them, so many with the lowest mean loss since the checkpoint before.
        validate_every: steps between validation sheets; 0 paints none.
        log_every: steps between lines of metrics; 1 writes all.
        tensorboard: write TensorBoard's files, where it is installed.
        wandb: the name of a Weights & Biases project; "" sends nothing.
    """

    steps: int = 1000
    batch_size: int = 1
    micro_batch_size: int = 1
    seed: int = 0
    device: str = "auto"
    parallel: str = "data"
    save_every: int = 1000
    keep: int = 3
    keep_best: int = 0
    validate_every: int = 0
    log_every: int = 1
    tensorboard: bool = True
    wandb: str = ""

    def __post_init__(self) -> None:
        _one_of("run.parallel", self.parallel, ENGINES)
        _one_of("run.device", self.device, DEVICES)
        for name in ("steps", "batch_size", "micro_batch_size", "save_every", "log_every"):
            _at_least(f"run.{name}", getattr(self, name), 1)
        for name in ("keep", "keep_best", "validate_every"):
            _at_least(f"run.{name}", getattr(self, name), 0)
        _between("run.seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class ValidationPrompt:
    """A prompt that validation paints, and the picture files that it speaks of, in order."""

    prompt: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class ValidationSettings:
    """The validation sheet: what is painted, in how many steps, and how large (`size`, pixels a side)."""

    prompts: tuple[ValidationPrompt, ...] = ()
    steps: int = STEPS
    guidance: float = GUIDANCE
    seed: int = 0
    size: int = 512

    def __post_init__(self) -> None:
        _at_least("validation.steps", self.steps, 1)
        _at_least("validation.guidance", self.guidance, 0)
        _between("validation.seed", self.seed, 0, 2**64 - 1)
        fits = self.size >= FLUX_LATENTS.unit and self.size % FLUX_LATENTS.unit == 0
        _check("validation.size", self.size, fits, f"a multiple of {FLUX_LATENTS.unit}")


@dataclass(frozen=True)
class Config:
    """A whole run, section by section."""

    model: ModelSettings = field(default_factory=ModelSettings)
    stage: StageSettings = field(default_factory=StageSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema: EMASettings = field(default_factory=EMASettings)
    run: RunSettings = field(default_factory=RunSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)

    def check_complete(self) -> None:
        """Raises UniWorldError if what no default can give is not set: the model, and the data."""
        if not self.model.checkpoint:
            raise UniWorldError(
                "model.checkpoint is not set: name the UniWorld checkpoint that training starts from "
                "(--set model.checkpoint=FOLDER)."
            )
        if not self.data.list and not self.data.shards:
            raise UniWorldError(
                "Neither data.list nor data.shards is set: say where the samples are (--set data.list=FILE)."
            )


def _check(name: str, value: object, right: bool, expected: str) -> None:
    if not right:
        raise UniWorldError(f"{name} is {value!r}; it must be {expected}.")


def _one_of(name: str, value: str, choices: Iterable[str]) -> None:
    _check(name, value, value in choices, f"one of {', '.join(choices)}")


def _at_least(name: str, value: float, least: float) -> None:
    _check(name, value, least <= value < float("inf"), f"{least} or more")


def _between(name: str, value: float, least: float, most: float) -> None:
    _check(name, value, least <= value <= most, f"from {least} to {most}")
