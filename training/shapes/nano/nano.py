"""Train nano from scratch: stand-ins, starting checkpoint, the two published stages, and the routing head.

Everything is in one folder. Each finished step leaves a marker or its result there, so that the same command resumes after
a kill.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....uniworld_core import UniWorld
from ....uniworld_core.backbones.flux_latents import read_latent_format
from ....uniworld_core.backbones.flux_vae import VAE
from ....uniworld_core.backbones.qwen_files import read_tokenizer
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.families.uniworld_v1.projectors import TASK_HEAD_FILE
from ....uniworld_core.loading.vocabulary import clip_tokenizer, t5_tokenizer
from ...engine.precision import resolve_device
from ...files import make_folder, write_atomic
from ...publish.convert import BaseModels, convert
from ...publish.export import export_run
from ...publish.model_folder import new_folder
from ...run.loop import train
from ...run.task_head import RoutingExample, save_task_head, train_task_head
from ..standins import fit, folders, parts, tokens
from ..tasks.dataset import write_dataset
from ..tasks.tasks import PAINTED_KINDS, make_task
from .curves import draw_curves
from .jobs import Progress
from .recipe import Hyperparameters, Recipe, read_recipe
from .scope import world_scope, write_scope
from .stages import RECIPE, Stage, fill_cache_together, stage_config

CURVES = "curves.png"
_DONE = ".whole"  # suffix of the marker file of a finished stand-in


def train_nano(
    folder: Path,
    quick: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    recipe: Recipe | None = None,
) -> Path:
    """Train nano, or resume its training.

    Args:
        folder: output folder; it gets `standins/`, `start/`, `data/`, `cache/`, `stage1/`, `stage2/` and finally `nano/`.
        quick: train for a few minutes instead of a night; the result is weak.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        progress: called at every step.
        recipe: another recipe than the full or the quick one.

    Returns:
        `folder/nano`, with the folders `uniworld`, `flux` and `siglip`.

    Raises:
        UniWorldError: the disk is full, or the folder has a nano of another recipe.
    """
    target = resolve_device(device)
    steps = recipe or read_recipe("quick" if quick else "gpu" if target == "cuda" else "full")
    work = _NanoRun(folder, steps, target, progress or (lambda *_: None))
    stand_ins = (work.tokenizers, work.vae, work.decoder, work.vlm, work.siglip, work.flux)
    for step in (*stand_ins, work.start, work.data, work.cache):
        step()
    work.stage("stage1")
    work.stage("stage2")
    work.routing()
    return work.finish()


class _NanoRun:
    """The steps of training nano; each is skipped if its result exists."""

    def __init__(self, folder: Path, recipe: Recipe, device: str, progress: Progress) -> None:
        self.folder, self.recipe, self.device, self.progress = folder, recipe, device, progress
        self.standins = folder / "standins"
        # One process cannot draw pictures fast enough for a GPU; on a CPU, drawing takes little of the time.
        self.workers = 0 if device == "cpu" else min(12, os.cpu_count() or 1)
        self.qwen, self.flux_folder, self.siglip_folder = (self.standins / name for name in ("qwen", "flux", "siglip"))
        make_folder(self.standins)
        _check_recipe(folder, recipe)

    def tokenizers(self) -> None:
        # Never rewritten, because models that were trained with them depend on their token ids.
        done = self.standins / f"tokenizers{_DONE}"
        if not done.is_file():
            tokens.write_qwen_tokenizer(self.qwen)
            tokens.write_clip_tokenizer(self.flux_folder / "tokenizer")
            tokens.write_t5_tokenizer(self.flux_folder / "tokenizer_2")
            done.touch()
        self.qwen_tokens = tokens.qwen_ids(self.qwen)

    def vae(self) -> None:
        from ..standins.colors import STEPS, fit_colors
        from ..standins.vae import VAEObjective, fit_latents

        def make() -> VAEObjective:
            return VAEObjective(self.recipe.vae.batch, self.device)

        def write(trained: VAEObjective) -> None:
            found = fit_latents(trained.vae, self.device)
            # A VAE that is barely trained does not justify more steps.
            rgb = fit_colors(trained.vae, found, self.device, min(STEPS, 4 * self.recipe.vae.steps))
            folders.write_vae(trained.vae, replace(found, rgb=rgb), self.flux_folder / "vae")

        self._fit_stand_in("vae", self.recipe.vae, make, write)

    def decoder(self) -> None:
        from ..standins.vae import DecoderObjective

        def make() -> DecoderObjective:
            vae = VAE.from_pretrained(self.flux_folder, torch.float32, self.device)
            return DecoderObjective(vae, self.recipe.decoder.batch, self.device)

        def write(trained: DecoderObjective) -> None:
            folders.replace_vae(trained.vae, self.flux_folder / "vae")

        self._fit_stand_in("decoder", self.recipe.decoder, make, write)

    def vlm(self) -> None:
        from ..standins.vlm import VLMObjective

        def make() -> VLMObjective:
            return VLMObjective(read_tokenizer(self.qwen), self.qwen_tokens, self.recipe.vlm.batch, self.device)

        def write(trained: VLMObjective) -> None:
            folders.write_qwen(trained.qwen, self.qwen_tokens, self.qwen)

        self._fit_stand_in("vlm", self.recipe.vlm, make, write)

    def siglip(self) -> None:
        from ..standins.siglip import SigLIPObjective

        def make() -> SigLIPObjective:
            tokenizer = clip_tokenizer(self.flux_folder / "tokenizer")
            return SigLIPObjective(tokenizer, self.recipe.siglip.batch, self.device)

        def write(trained: SigLIPObjective) -> None:
            folders.write_siglip(trained.siglip, self.siglip_folder)

        self._fit_stand_in("siglip", self.recipe.siglip, make, write)

    def flux(self) -> None:
        from ..standins.flux import POOL, FluxObjective, latent_pool

        def make() -> FluxObjective:
            vae = VAE.from_pretrained(self.flux_folder, torch.float32, self.device)
            length = self.recipe.flux
            # Each picture is used four times or more, with different prompts and noise.
            count = min(POOL, max(length.batch, length.batch * length.steps // 4))
            latents = latent_pool(self.standins / "flux.pool", vae.autoencoder, vae.latent_format, self.device, count)
            tokenizers = clip_tokenizer(self.flux_folder / "tokenizer"), t5_tokenizer(self.flux_folder / "tokenizer_2")
            latent_format = read_latent_format(self.flux_folder)
            return FluxObjective(*tokenizers, latents, latent_format, length.batch, self.device)

        def write(trained: FluxObjective) -> None:
            folders.write_flux(trained.clip, trained.t5, trained.dit.transformer, self.flux_folder)
            (self.standins / "flux.pool").unlink()

        self._fit_stand_in("flux", self.recipe.flux, make, write)

    def start(self) -> None:
        if not (self.folder / "start").is_dir():
            convert(BaseModels(self.qwen, self.flux_folder, siglip=self.siglip_folder), self.folder / "start")

    def data(self) -> None:
        recipe = self.recipe
        write_dataset(self.folder / "data", recipe.samples, recipe.seed, "train", parts.PAINTED, PAINTED_KINDS)

    def cache(self) -> None:
        config = stage_config(self.folder, self.recipe, "stage2", self.device)
        # Decoding pictures would keep a GPU waiting, so several processes feed it, each with its share.
        fill_cache_together(config, self.workers, partial(self.progress, "cache"))

    def stage(self, name: Stage) -> None:
        # Ctrl-C ends a stage with a checkpoint and without an exception; the next stage must not start then.
        if train(stage_config(self.folder, self.recipe, name, self.device), self.folder / name).interrupted:
            raise KeyboardInterrupt

    def routing(self) -> None:
        exported = self.folder / "exported"
        if not exported.is_dir():
            # bfloat16 halves the shipped size, with no visible effect on pictures.
            export_run(self.folder / "stage2", exported, dtype=torch.bfloat16)
        if not (exported / TASK_HEAD_FILE).is_file():
            model = UniWorld.from_pretrained(exported, dtype=torch.float32, device=self.device)
            items = _routing_examples(self.recipe.routing, self.recipe.seed)
            # Each prompt is used about forty times.
            save_task_head(train_task_head(model.vlm, items, steps=max(1000, len(items) // 3)), exported)

    def finish(self) -> Path:
        """Assemble the shipped model: checkpoint, SigLIP, and FLUX without the transformer, which is in the checkpoint."""
        made = self.folder / "nano"
        if not made.is_dir():
            with new_folder(made) as folder:
                shutil.copytree(self.folder / "exported", folder / "uniworld")
                write_scope(world_scope(), folder / "uniworld")
                shutil.copytree(self.flux_folder, folder / "flux", ignore=shutil.ignore_patterns("transformer"))
                shutil.copytree(self.siglip_folder, folder / "siglip")
        UniWorld.from_pretrained(made / "uniworld", made / "flux", made / "siglip")  # checks every file
        # Plots are optional: a missing matplotlib must not fail a night of training.
        if find_spec("matplotlib") is not None and not (self.folder / CURVES).is_file():
            draw_curves(self.folder, self.folder / CURVES)
        return made

    def _fit_stand_in(
        self, name: str, length: Hyperparameters, make: Callable[[], Any], write: Callable[[Any], None]
    ) -> None:
        done = self.standins / f"{name}{_DONE}"
        if done.is_file():
            return
        parts.seeded(self.recipe.seed)
        module = make()
        plan = fit.Fit(
            name, length.steps, length.learning_rate, length.matrix_rate, self.recipe.seed, workers=self.workers
        )
        fit.train(plan, module, self.standins, self.progress)
        write(module.eval())
        done.touch()


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    """Bind the folder to one recipe, because results of another would be reused. Raises UniWorldError on a mismatch."""
    file, text = folder / RECIPE, json.dumps(asdict(recipe), indent=2) + "\n"
    if not file.is_file():
        write_atomic(file, text.encode())
    elif file.read_text(encoding="utf-8") != text:
        raise UniWorldError(
            f"{folder} contains a nano of another recipe (see {file}): use the command that started it, with or without "
            "--quick and on the same kind of device, or choose another folder."
        )


def _routing_examples(count: int, seed: int) -> list[RoutingExample]:
    """Return training prompts, half of them questions and half of all other kinds."""
    rng = np.random.default_rng([seed, 1])
    items = []
    for number in range(count):
        kind = "question" if number % 2 else PAINTED_KINDS[int(rng.integers(len(PAINTED_KINDS)))]
        task = make_task(kind, rng, "train")
        items.append(RoutingExample(task.prompt, task.references, kind != "question"))
    return items
