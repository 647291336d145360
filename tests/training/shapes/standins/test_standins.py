"""The stand-ins for the base models: the core reads them like the public ones, and their training resumes after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from uniworld.training.publish.convert import BaseModels, convert
from uniworld.training.run.task_head import RoutingExample, save_task_head, train_task_head
from uniworld.training.shapes.standins import fit, flux, folders, parts, siglip, tokens, vae, vision, vlm
from uniworld.training.shapes.tasks.questions import listing
from uniworld.training.shapes.tasks.tasks import KINDS, make_task
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS
from uniworld.uniworld_core.backbones.flux_vae import VAE
from uniworld.uniworld_core.backbones.qwen_files import make_processor, read_tokenizer
from uniworld.uniworld_core.loading.vocabulary import clip_tokenizer, t5_tokenizer

FOREIGN = "Ein Löwe 猫 & 3 kites, painted by Xyzzy!"


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained stand-ins in the folders `qwen`, `flux` and `siglip`, and the starting checkpoint built from them."""
    folder = tmp_path_factory.mktemp("standins")
    tokens.write_qwen_tokenizer(folder / "qwen")
    ids = tokens.qwen_ids(folder / "qwen")
    clip_ids = tokens.write_clip_tokenizer(folder / "flux" / "tokenizer")
    t5_size = tokens.write_t5_tokenizer(folder / "flux" / "tokenizer_2")
    parts.seeded(0)
    folders.write_qwen(parts.make_qwen(ids["vocab_size"], ids), ids, folder / "qwen")
    folders.write_vae(parts.make_vae(), replace(FLUX_LATENTS, shift=0.25, scale=0.75), folder / "flux" / "vae")
    clip = parts.make_clip(clip_ids["vocab_size"], clip_ids["begin"], clip_ids["end"])
    folders.write_flux(clip, parts.make_t5(t5_size), parts.make_flux(), folder / "flux")
    folders.write_siglip(parts.make_siglip(), folder / "siglip")
    convert(BaseModels(folder / "qwen", folder / "flux", siglip=folder / "siglip"), folder / "start")
    return folder


@pytest.fixture(scope="module")
def untrained(standins: Path) -> UniWorld:
    return UniWorld.from_pretrained(standins / "start", standins / "flux", standins / "siglip", dtype=torch.float32)


def test_the_core_reads_the_folders_like_those_of_the_public_models(untrained: UniWorld) -> None:
    untrained.check()
    task = make_task("compose", np.random.default_rng(0), "train")
    refs = untrained.reference(task.references)
    condition = untrained.encode(task.prompt, refs)
    painted = untrained.decode(untrained.sample(condition, 64, 64, steps=1))
    assert painted.shape == (1, 64, 64, 3)
    assert untrained.latent_format == replace(FLUX_LATENTS, shift=0.25, scale=0.75)
    assert isinstance(untrained.understand(task.prompt, refs, max_new_tokens=2), str)


def test_siglip_has_one_token_per_dit_token_and_the_vlm_sixteen(untrained: UniWorld) -> None:
    task = make_task("remove", np.random.default_rng(0), "train")
    inputs = untrained.vlm.inputs([task.prompt], [task.references])
    assert int((inputs.ids == untrained.vlm.config.tokens["image_token_id"]).sum()) == 16
    painted = (parts.PAINTED // FLUX_LATENTS.factor // FLUX_LATENTS.pack) ** 2
    assert untrained.reference(task.references)[0].features.shape == (painted, parts.SIGLIP_WIDTH)  # type: ignore[union-attr]


def test_the_stand_ins_are_small_enough_to_ship(standins: Path) -> None:
    sizes = [file.stat().st_size for name in ("start", "siglip") for file in (standins / name).rglob("*.safetensors")]
    sizes += [
        file.stat().st_size
        for name in ("vae", "text_encoder", "text_encoder_2")
        for file in (standins / "flux" / name).rglob("*.safetensors")
    ]
    assert sum(sizes) < 60e6


class TestTokenizers:
    def test_words_of_the_world_are_one_token_each_to_all_three(self, standins: Path) -> None:
        qwen = read_tokenizer(standins / "qwen")
        assert len(qwen(" a large orange triangle at the bottom left")["input_ids"]) == 8
        clip = clip_tokenizer(standins / "flux" / "tokenizer")
        assert len(clip("large orange triangle")["input_ids"]) == 5  # with its begin and end
        t5 = t5_tokenizer(standins / "flux" / "tokenizer_2")
        assert len(t5("a large orange triangle")["input_ids"]) == 5  # with its end

    def test_any_text_can_be_encoded(self, standins: Path) -> None:
        qwen = read_tokenizer(standins / "qwen")
        assert qwen.decode(qwen(FOREIGN)["input_ids"]) == FOREIGN
        for read, name in ((clip_tokenizer, "tokenizer"), (t5_tokenizer, "tokenizer_2")):
            assert len(read(standins / "flux" / name)(FOREIGN)["input_ids"]) > 10

    def test_they_are_the_same_each_time(self, standins: Path, tmp_path: Path) -> None:
        tokens.write_qwen_tokenizer(tmp_path / "qwen")
        tokens.write_t5_tokenizer(tmp_path / "t5")
        for again, first in (("qwen", standins / "qwen"), ("t5", standins / "flux" / "tokenizer_2")):
            assert (tmp_path / again / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


def test_patches_equal_those_of_the_processor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shown = [picture for kind in ("compose", "edge") for picture in make_task(kind, rng, "train").references]
    processor = make_processor("Qwen2VLImageProcessor", vlm.preprocessor_config(), tmp_path)
    made = processor(images=shown, return_tensors="pt", input_data_format="channels_last")
    assert torch.equal(vlm.patches(shown), made["pixel_values"])
    assert made["image_grid_thw"].tolist() == [[1, 8, 8]] * len(shown)


def test_batched_vision_attention_gives_the_same_result(untrained: UniWorld) -> None:
    rng = np.random.default_rng(0)
    shown = [make_task("remove", rng, "train").references[0] for _ in range(3)]
    visual, grids = untrained.vlm.qwen.model.visual, torch.tensor([[1, 8, 8]] * 3)

    def seen() -> torch.Tensor:
        tokens: list[torch.Tensor] = []
        handle = visual.merger.register_forward_hook(lambda *call: tokens.append(call[2]))
        with torch.no_grad():
            visual(vlm.patches(shown), grid_thw=grids)
        handle.remove()
        return tokens[0]

    one_by_one = seen()
    vision.batch_vision_attention(visual, 64)
    try:
        torch.testing.assert_close(seen(), one_by_one, rtol=1e-4, atol=1e-5)
    finally:
        for block in visual.blocks:
            del block.attn.forward


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "question"])
def test_an_outcome_describes_what_an_instruction_would_paint(kind: str) -> None:
    rng = np.random.default_rng(1)
    task = make_task(kind, rng, "train")
    said = vlm.outcome(task, rng)
    changed = task.result or task.subject
    if changed is not None:
        assert f"{changed.size} {changed.color} {changed.shape} {changed.place}" in said
    if task.after is None:
        assert said.startswith(task.detail or task.kind)


def test_a_cell_shows_the_object_that_fills_it() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        scene = make_task("remove", rng, "train").before[0]
        cells = [vlm.token_class(thing) for thing in vlm.objects_per_token(scene)]
        assert len(cells) == 16
        shown = {cell for cell in cells if cell}
        assert len(shown) <= len(scene.objects)
        assert shown  # every object is compact enough that a token shows it


def test_picture_tokens_point_at_what_the_prompt_refers_to(standins: Path) -> None:
    folder = standins / "qwen"
    examples = vlm.VLMExamples(read_tokenizer(folder), tokens.qwen_ids(folder)["image_token_id"], 1)
    task = make_task("remove", np.random.default_rng(0), "train")
    scene, subject = task.before[0], task.subject
    other = next(thing for thing in scene.objects if thing != subject)
    pointed = [examples.collate([vlm.VLMExample("?", (scene,), "!", thing)]).pointed for thing in (subject, other)]
    assert all(0 < one.sum() < len(one) for one in pointed)
    assert not (pointed[0] * pointed[1]).any()
    nothing = examples.collate([vlm.VLMExample("?", (scene,), "!")]).pointed
    assert nothing.isnan().all()
    assert len(nothing) == len(vlm.objects_per_token(scene))


def test_a_batch_that_points_at_nothing_has_a_loss(standins: Path) -> None:
    folder = standins / "qwen"
    module = vlm.VLMObjective(read_tokenizer(folder), tokens.qwen_ids(folder), 1)
    scene = make_task("remove", np.random.default_rng(0), "train").before[0]
    loss, _told = module.loss(module.source.collate([vlm.VLMExample("?", (scene,), "nothing")]))
    assert torch.isfinite(loss)


def test_each_answer_is_weighted_by_the_root_of_its_length() -> None:
    told = torch.tensor([[True, False, False, False], [True, True, True, True]])
    losses = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0])
    assert vlm._mean_of_answers(losses, told).item() == pytest.approx((3 * 1 + 4 * 0.5) / (1 + 4 * 0.5))


def test_a_listing_names_everything_place_by_place() -> None:
    scene = make_task("remove", np.random.default_rng(0), "train").before[0]
    said = listing(scene)
    places = [f"{thing.size} {thing.color} {thing.shape} {thing.place}" for thing in scene.objects]
    assert all(words in said for words in places)


class Killed(Exception):
    """Replaces a signal."""


class _Layers(fit.Objective):
    """Convolutions that learn to reproduce their input."""

    ends = ("first", "last")
    dies_at = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = (
            nn.Conv2d(*channels, 3, padding=1) for channels in ((1, 4), (4, 6), (6, 1))
        )
        self.seen = 0

    @staticmethod
    def source(rng: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((2, 1, 5, 5), np.float32))

    def loss(self, drawn: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.seen += 1
        if self.seen == self.dies_at:
            raise Killed
        return (self.last(self.middle(self.first(drawn)).relu()) - drawn).square().mean(), {}


class _Line(fit.Objective):
    """Learns a number from noisy copies of it."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    @staticmethod
    def source(rng: np.random.Generator) -> float:
        return 3 + 0.1 * float(rng.standard_normal())

    def loss(self, drawn: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (self.value - drawn) ** 2, {"value": self.value}


class TestTheLoop:
    def test_it_learns(self, tmp_path: Path) -> None:
        line = _Line()
        fit.train(fit.Fit("line", 400, 0.1), line, tmp_path)
        assert line.value.item() == pytest.approx(3, abs=0.2)
        last = json.loads((tmp_path / "line.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 400

    def test_a_killed_one_resumes_to_bit_identical_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
        whole = _Line()
        fit.train(fit.Fit("whole", 30), whole, tmp_path)

        class Dying(_Line):
            left = 17

            def loss(self, drawn: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                self.left -= 1
                if self.left < 0:
                    raise Killed
                return super().loss(drawn)

        with pytest.raises(Killed):
            fit.train(fit.Fit("part", 30), Dying(), tmp_path)
        resumed = _Line()
        fit.train(fit.Fit("part", 30), resumed, tmp_path)
        assert torch.equal(resumed.value, whole.value)
        assert not list(tmp_path.glob("*.part"))

    def test_a_loss_that_is_not_finite_stops_it_with_its_name(self, tmp_path: Path) -> None:
        class Broken(_Line):
            def loss(self, drawn: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                return self.value * float("nan"), {}

        with pytest.raises(ValueError, match="loss of broken is nan at step 5"):
            fit.train(fit.Fit("broken", 5), Broken(), tmp_path)

    def test_batches_drawn_by_other_processes_are_the_same(self, tmp_path: Path) -> None:
        here, there = _Line(), _Line()
        fit.train(fit.Fit("here", 20), here, tmp_path)
        fit.train(fit.Fit("there", 20, workers=2), there, tmp_path)
        assert torch.equal(here.value, there.value)

    def test_muon_trains_the_matrices_between_the_ends_and_resumes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            pytest.skip("this PyTorch has no Muon")
        monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
        whole, halted = _Layers(), _Layers()
        began = {name: one.detach().clone() for name, one in whole.named_parameters()}
        plan = fit.Fit("whole", 12, 0.0, matrix_rate=0.01, weight_decay=0.0)
        fit.train(plan, whole, tmp_path)
        moved = {name for name, one in whole.named_parameters() if not torch.equal(one, began[name])}
        assert moved == {"middle.weight"}
        halted.dies_at = 7
        with pytest.raises(Killed):
            fit.train(replace(plan, name="halted"), halted, tmp_path)
        resumed = _Layers()
        fit.train(replace(plan, name="halted"), resumed, tmp_path)
        assert torch.equal(resumed.middle.weight, whole.middle.weight)

    def test_the_rate_warms_up_and_decays(self) -> None:
        plan = fit.Fit("rate", 1000, 5.0)
        rates = [fit.schedule(plan, step) for step in range(1000)]
        assert rates[0] < 0.02
        assert max(rates) == pytest.approx(1, abs=0.05)
        assert rates[-1] < 0.02


class TestObjectives:
    """The loss of each objective decreases on a repeated batch."""

    def check(self, module: Any) -> None:
        optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
        losses = []
        for _ in range(4):
            loss, _told = module.loss(module.source(np.random.default_rng(0)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    @pytest.fixture(autouse=True)
    def _same_weights(self) -> None:
        parts.seeded(0)

    def test_vae(self) -> None:
        self.check(vae.VAEObjective(4))

    def test_decoder_without_changing_the_latents(self, standins: Path, tmp_path: Path) -> None:
        trained = VAE.from_pretrained(standins / "flux", torch.float32)
        pictures_BHW3 = fit.uint8_batch(vae.pictures(np.random.default_rng(0), 2)).float() / 255
        latents, decoded = trained.encode(pictures_BHW3), trained.decode(trained.encode(pictures_BHW3))
        self.check(vae.DecoderObjective(trained, 4))
        copied = shutil.copytree(standins / "flux" / "vae", tmp_path / "vae")
        folders.replace_vae(trained.autoencoder, copied)
        again = VAE.from_pretrained(tmp_path, torch.float32)
        assert torch.equal(again.encode(pictures_BHW3), latents)
        assert not torch.equal(again.decode(latents), decoded)
        assert again.latent_format == trained.latent_format

    def test_siglip(self, standins: Path) -> None:
        self.check(siglip.SigLIPObjective(clip_tokenizer(standins / "flux" / "tokenizer"), 4))

    def test_vlm(self, standins: Path) -> None:
        folder = standins / "qwen"
        self.check(vlm.VLMObjective(read_tokenizer(folder), tokens.qwen_ids(folder), 4))

    def test_flux(self, standins: Path, untrained: UniWorld, tmp_path: Path) -> None:
        latent_format = untrained.latent_format
        latents = flux.latent_pool(tmp_path / "pool", untrained.vae.autoencoder, latent_format, "cpu", 8)
        tokenizers = clip_tokenizer(standins / "flux" / "tokenizer"), t5_tokenizer(standins / "flux" / "tokenizer_2")
        self.check(flux.FluxObjective(*tokenizers, latents, latent_format, 4))


def test_the_routing_head_learns_to_distinguish_questions_from_instructions(
    untrained: UniWorld, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    items = [
        RoutingExample(task.prompt, task.references, task.kind != "question")
        for kind in ("question", "remove") * 24
        for task in [make_task(kind, rng, "train")]
    ]
    head = train_task_head(untrained.vlm, items, steps=60, batch_size=32)
    save_task_head(head, tmp_path)
    from uniworld.uniworld_core.families.uniworld_v1.projectors import read_task_head

    read = read_task_head(tmp_path, parts.VLM_WIDTH)
    assert read is not None
    from uniworld.training.run.task_head import assistant_states

    paints = read(assistant_states(untrained.vlm, items)).argmax(dim=1)
    assert (paints == torch.tensor([int(item.paint) for item in items])).float().mean() > 0.9
    with pytest.raises(ValueError, match="have the same kind of answer"):
        train_task_head(untrained.vlm, items[::2])
