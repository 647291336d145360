"""Training runs for checking the paper's claims: variants of nano's two stages, each with several seeds.

They use the recipe, the stand-ins and the starting checkpoint of a run of nano, and train on tasks of the evaluated kinds.
Variants that differ only in what is claimed branch off a common trunk, which takes most of the time and is trained once.
The branches of one seed see the same samples and noise in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from ....uniworld_core.editing.weights import WEIGHT_FUNCTION, WEIGHT_FUNCTIONS
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.loading.settings import read_json
from ...config.file import load_config
from ...config.settings import NO_WEIGHT, Config
from ...data.cache import Cache
from ...data.encode import Encoder
from ...engine import checkpoints
from ...files import locked, make_folder, write_atomic
from ...run.folder import CHECKPOINTS, CONFIG, differing_keys
from ...run.loop import train
from ...run.setup import RunData, open_data
from ..nano.jobs import Progress
from ..nano.recipe import Recipe
from ..nano.stages import RECIPE, Stage, fill_cache_together, recipe_of, stage_config
from ..standins.parts import PAINTED
from ..tasks.dataset import LIST, write_dataset
from ..tasks.tasks import EDITS
from .reweight import ReweightedCache

PUBLISHED_WEIGHT = WEIGHT_FUNCTION
# As in the published stage 2. Nano itself uses a decaying learning rate, which has the same effect as the EMA.
SCHEDULE = "constant_with_warmup"

# Added to the seed of trunks, so that no branch repeats its trunk's samples and noise; that branch would be special.
_TRUNK_SEED = 2**20

_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Variant:
    """A way of training, or of selecting the weights of a run.

    Attributes:
        name: name in results.
        label: name in tables.
        run: the run that it uses; runs are named after variants.
        stage1_only: continue stage 1 for the steps of both stages, instead of stage 2.
        use_siglip: pass the references' SigLIP features to the DiT, in training and in evaluation.
        weight: the edit weight, or "none".
        raw: use the raw weights instead of their EMA.
    """

    name: str
    label: str
    run: str
    stage1_only: bool = False
    use_siglip: bool = True
    weight: str = PUBLISHED_WEIGHT
    raw: bool = False

    @property
    def trunk(self) -> str:
        """The run that it branches off."""
        if self.stage1_only:
            return STAGE1_TRUNK
        return STAGE2_TRUNK if self.use_siglip else NO_SIGLIP_TRUNK


STAGE1_TRUNK, STAGE2_TRUNK, NO_SIGLIP_TRUNK = "stage1_alone", "stage2", "no_siglip"
STAGE1_ALONE = Variant("stage1_alone", "stage 1 alone", "stage1_alone", stage1_only=True, use_siglip=False)
FULL = Variant("full", "stage 2", "full")
RAW = replace(FULL, name="raw", label="stage 2, raw weights", raw=True)
NO_SIGLIP = Variant("no_siglip", "stage 2 without SigLIP", "no_siglip", use_siglip=False)
NO_EDIT_WEIGHT = Variant("weight_none", "stage 2 without edit weight", "weight_none", weight=NO_WEIGHT)
# {weight: variant}; the variant of the published weight is plain stage 2.
WEIGHTS = {
    **{
        weight: Variant(
            f"weight_{weight}", f"stage 2, {weight.replace('_', ' ')} weight", f"weight_{weight}", weight=weight
        )
        for weight in WEIGHT_FUNCTIONS
    },
    PUBLISHED_WEIGHT: FULL,
    NO_WEIGHT: NO_EDIT_WEIGHT,
}
VARIANTS = tuple(dict.fromkeys((STAGE1_ALONE, FULL, RAW, NO_SIGLIP, *WEIGHTS.values())))


# Kinds of tasks for training and evaluation: those that must preserve something of a reference.
KINDS = (*EDITS, "reconstruct")


@dataclass(frozen=True)
class Runs:
    """The variants' runs in a folder, with their data and its cache.

    Attributes:
        nano: the folder of a run of nano with stand-ins and starting checkpoint.
        folder: folder of `data/`, `cache/` and `runs/`.
        steps: steps of each branch.
        trunk_steps: steps of stage 2 before the branches; stage 1 keeps the recipe's ratio to stage 2.
        batch: batch size; None means the recipe's.
        device: "cpu" or "cuda".
    """

    nano: Path
    folder: Path
    steps: int
    trunk_steps: int
    batch: int | None = None
    device: str = "cpu"

    def check(self) -> None:
        """Check that nano's run has what the variants start from. Raises UniWorldError naming what is missing."""
        needed = (RECIPE, "start", "standins/flux/model_index.json", "standins/siglip/config.json")
        missing = [name for name in needed if not (self.nano / name).exists()]
        if missing:
            raise UniWorldError(
                f"'{self.nano}' is not a run of nano with stand-ins and starting checkpoint; missing: {', '.join(missing)}. "
                "Run `uniworld train nano` first, or give another folder."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and lock it within the block.

        Raises:
            UniWorldError: it has runs of other settings, another process uses it, or it cannot be created.
        """
        make_folder(self.folder)
        busy = f"Another process is checking claims in '{self.folder}': wait for it, or choose another folder."
        with locked(self.folder / "lock", wait=False, busy=busy):
            self._check_settings()
            yield

    def make_data(self, processes: int, progress: Progress) -> None:
        """Write the tasks and fill their cache, unless that is done.

        Raises:
            UniWorldError: the disk is full.
        """
        seed = self.recipe.seed
        write_dataset(
            self.folder / "data", self.samples, seed, "train", PAINTED, KINDS, partial(_plain, progress, "data")
        )
        fill_cache_together(self.config("stage2", self.steps, seed), processes, partial(progress, "cache"))

    def folder_of(self, run: str, seed: int) -> Path:
        return self.folder / "runs" / f"seed-{seed}" / run

    def trunk_of(self, run: str) -> Path:
        return self.folder / "runs" / "trunk" / run

    @property
    def flux(self) -> Path:
        return self.nano / "standins" / "flux"

    @property
    def siglip(self) -> Path:
        return self.nano / "standins" / "siglip"

    @cached_property
    def recipe(self) -> Recipe:
        recipe = recipe_of(self.nano)
        # The same batch size for both stages, so that stage 1 alone sees as many samples as both together.
        batch = self.batch or recipe.stage2.batch
        stage1, stage2 = (replace(length, batch=batch) for length in (recipe.stage1, recipe.stage2))
        return replace(recipe, stage1=stage1, stage2=stage2)

    @property
    def samples(self) -> int:
        """Number of training tasks: at most one epoch."""
        return min(self.recipe.samples, self.stage2_steps * self.recipe.stage2.batch)

    @property
    def stage2_steps(self) -> int:
        """Steps of trunk and branch together."""
        return self.trunk_steps + self.steps

    @property
    def stage1_steps(self) -> int:
        """Steps of the stage 1 run that every stage 2 run starts from."""
        return max(1, round(self.stage2_steps * self.recipe.stage1.steps / self.recipe.stage2.steps))

    def train_stage1(self, progress: bool = False) -> None:
        """Train or resume the stage 1 run that the trunks of stage 2 start from. Raises like `train`."""
        self._finish(self.trunk_config("stage1"), self.trunk_of("stage1"), progress)

    def train_trunk(self, trunk: str, progress: bool = False) -> None:
        """Train or resume a trunk. Raises like `train`."""
        if trunk != STAGE1_TRUNK:
            self.train_stage1(progress)
        self._finish(self.trunk_config(trunk), self.trunk_of(trunk), progress)

    def train(self, variant: Variant, seed: int, progress: bool = False) -> Path:
        """Return the finished run of a variant; train or resume it first if necessary.

        Raises:
            UniWorldError: as `loop.train`.
            KeyboardInterrupt: interrupted; finished work is kept.
        """
        self.train_trunk(variant.trunk, progress)
        run = self.folder_of(variant.run, seed)
        self._finish(self.variant_config(variant, seed), run, progress)
        return run

    def trunk_config(self, trunk: str) -> Config:
        """Return the configuration of a trunk, or of the stage 1 run before it.

        Trunks have no edit weight, because the branches compare edit weights.
        """
        seed = self.recipe.seed + _TRUNK_SEED
        if trunk == "stage1":
            return self._stage1(self.stage1_steps, seed, NO_WEIGHT)
        if trunk == STAGE1_TRUNK:
            return self._stage1(self.stage1_steps + self.trunk_steps, seed, NO_WEIGHT)
        return self._stage2(self.trunk_steps, seed + 1, trunk == STAGE2_TRUNK, NO_WEIGHT, self.trunk_of("stage1"))

    def variant_config(self, variant: Variant, seed: int) -> Config:
        """Return the configuration of a variant's run."""
        start = self.trunk_of(variant.trunk)
        if variant.stage1_only:
            return self._stage1(self.steps, seed, variant.weight, start)
        return self._stage2(self.steps, seed, variant.use_siglip, variant.weight, start)

    def _stage1(self, steps: int, seed: int, weight: str, start: Path | None = None) -> Config:
        config = self.config("stage1", steps, seed)
        starts = () if start is None else (str(start),)
        return replace(config, stage=replace(config.stage, weight=weight), model=replace(config.model, start=starts))

    def _stage2(self, steps: int, seed: int, use_siglip: bool, weight: str, start: Path) -> Config:
        config = self.config("stage2", steps, seed)
        parts = tuple(part for part in config.stage.parts if use_siglip or part != "siglip_projector")
        stage = replace(config.stage, parts=parts, use_siglip=use_siglip, weight=weight)
        return replace(config, stage=stage, model=replace(config.model, start=(str(start),)))

    def config(self, stage: Stage, steps: int, seed: int) -> Config:
        """Return the configuration of nano's stage with another length and seed, and a constant learning rate."""
        config = stage_config(self.nano, self.recipe, stage, self.device)
        warmup = min(config.optimizer.warmup, steps // 10)
        return replace(
            config,
            model=replace(config.model, start=()),
            data=replace(config.data, list=str(self.folder / "data" / LIST), cache=str(self.folder / "cache")),
            optimizer=replace(config.optimizer, schedule=SCHEDULE, warmup=warmup),
            run=replace(config.run, steps=steps, seed=seed, validate_every=0, tensorboard=False, wandb=""),
        )

    def _finish(self, config: Config, folder: Path, progress: bool) -> None:
        if _has_ended(folder, config) and not differing_keys(load_config(folder / CONFIG), config):
            return
        if train(config, folder, progress, self._open).interrupted:
            raise KeyboardInterrupt

    def _open(self, config: Config, encoder: Encoder) -> RunData:
        """Open the cache for a run, re-weighted with the run's edit weight."""
        data = open_data(config, Encoder(encoder.model, replace(encoder.settings, weight=PUBLISHED_WEIGHT)))
        assert isinstance(data.source, Cache)
        return replace(data, source=ReweightedCache(data.source.folder, data.source.key, config.stage.weight))

    def _check_settings(self) -> None:
        start = hashlib.sha256()
        for file in sorted((self.nano / "start").glob("*.safetensors")):
            start.update(file.read_bytes())
        recipe = {name: asdict(getattr(self.recipe, name)) for name in ("stage1", "stage2")}
        lengths = {
            "steps": self.steps,
            "trunk_steps": self.trunk_steps,
            "batch": self.recipe.stage2.batch,
            "samples": self.samples,
        }
        wanted = {"start": start.hexdigest(), **lengths, **recipe, "seed": self.recipe.seed}
        file = self.folder / _SETTINGS
        there = read_json(file) if file.is_file() else wanted
        if set(there) != set(wanted):
            raise UniWorldError(f"'{self.folder}' has claims of another version: choose another folder.")
        other = [f"{name} {there[name]} instead of {value}" for name, value in wanted.items() if there[name] != value]
        if other:
            raise UniWorldError(
                f"'{self.folder}' has claims of other settings ({'; '.join(other)}): choose another folder, or restore "
                "these settings."
            )
        if not file.is_file():
            write_atomic(file, json.dumps(wanted, indent=1).encode())


def _plain(progress: Progress, name: str, done: int, total: int) -> None:
    progress(name, done, total, {})


def _has_ended(run: Path, config: Config) -> bool:
    """Return whether a run has finished all steps of its configuration."""
    newest = checkpoints.latest(run / CHECKPOINTS)
    return newest is not None and newest.name == checkpoints.checkpoint_name(config.run.steps)
