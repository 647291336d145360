"""The paper's claims at small scale: compared variants are trained alike, and a killed check resumes."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.training.cli.main import main
from uniworld.training.config.settings import Config
from uniworld.training.files import locked
from uniworld.training.run import loop
from uniworld.training.run.metrics import read_lines
from uniworld.training.shapes.claims import claims
from uniworld.training.shapes.claims import exam as claims_exam
from uniworld.training.shapes.claims import report as claims_report
from uniworld.training.shapes.claims import train as claims_train
from uniworld.training.shapes.claims.claims import check_claims
from uniworld.training.shapes.claims.report import ClaimsReport
from uniworld.training.shapes.claims.reweight import reweight
from uniworld.training.shapes.claims.rule import MIN_SEEDS
from uniworld.training.shapes.claims.train import (
    FULL,
    KINDS,
    NO_SIGLIP,
    RAW,
    STAGE1_ALONE,
    VARIANTS,
    WEIGHTS,
    Runs,
)
from uniworld.training.shapes.nano.jobs import Job, run_jobs
from uniworld.training.shapes.nano.recipe import Hyperparameters, Recipe
from uniworld.training.shapes.nano.stages import stage_config
from uniworld.uniworld_core.editing.weights import WEIGHT_FUNCTIONS, edit_weight

from ....forked import forked_context

TINY = Path(__file__).resolve().parents[4] / "uniworld_core" / "shipped" / "tiny"
SHAPES = Path(__file__).resolve().parents[4] / "training" / "shapes" / "claims"
LENGTH = Hyperparameters(steps=1, learning_rate=1e-3, batch=2)
RECIPE = Recipe(*(LENGTH,) * 5, samples=8, stage1=LENGTH, stage2=LENGTH, routing=1, seed=0)


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """Runs in float32 that log every loss."""

    def in_float32(*of: Any) -> Config:
        config = stage_config(*of)
        run = replace(config.run, micro_batch_size=2, log_every=1)
        return replace(config, model=replace(config.model, dtype="float32"), run=run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims_train, "stage_config", in_float32)
        yield


@pytest.fixture(scope="module", autouse=True)
def forked_jobs() -> Iterator[None]:
    """Jobs in processes that have imported the libraries, instead of in fresh ones."""
    forked, get_context = forked_context(), multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda kind: forked if kind == "spawn" else get_context(kind))
        yield


@pytest.fixture(scope="module")
def nano_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of nano with everything that the claims need; the tiny model replaces nano."""
    folder = tmp_path_factory.mktemp("nano")
    for source, name in (("uniworld", "start"), ("flux", "standins/flux"), ("siglip", "standins/siglip")):
        shutil.copytree(TINY / source, folder / name)
    write_recipe(folder, RECIPE)
    return folder


def write_recipe(folder: Path, recipe: Recipe) -> None:
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))


def check(nano_run: Path, folder: Path, **settings: Any) -> ClaimsReport:
    return check_claims(
        nano_run,
        folder,
        **{"seeds": (0,), "steps": 1, "trunk_steps": 1, "count": 1, "device": "cpu", "paint_steps": 1} | settings,
    )


def runs_of(nano_run: Path, folder: Path, steps: int) -> Runs:
    """Runs whose data is written."""
    runs = Runs(nano_run, folder, steps, trunk_steps=1)
    runs.make_data(1, lambda *_: None)
    return runs


@pytest.fixture(scope="module")
def checked(nano_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ClaimsReport]:
    """A folder in which claims were checked with one seed, and the report; tests only read it."""
    folder = tmp_path_factory.mktemp("claims")
    return folder, check(nano_run, folder)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any) -> None:
        raise AssertionError("It trains again.")

    monkeypatch.setattr(claims_train, "train", train)


class TestTheEditWeightOutOfACache:
    @pytest.mark.parametrize("made_with", list(WEIGHT_FUNCTIONS))
    @pytest.mark.parametrize("wanted", list(WEIGHT_FUNCTIONS))
    def test_equals_the_weight_of_the_mask_for_every_edited_area(self, made_with: str, wanted: str) -> None:
        generator = torch.Generator().manual_seed(0)
        for edited in range(65):
            mask_hw = (torch.randperm(64, generator=generator) < edited).reshape(8, 8)
            cached_hw, wanted_hw = (edit_weight(mask_hw[None], name)[0] for name in (made_with, wanted))
            found_hw = reweight(cached_hw, wanted)
            assert found_hw is not None
            assert torch.equal(found_hw, wanted_hw)

    def test_is_none_without_a_weight_before_or_after(self) -> None:
        assert reweight(None, "linear") is None
        assert reweight(torch.full((8, 8), 2.0), "none") is None

    @pytest.mark.parametrize("weight", ["linear", "none"])
    def test_trains_to_the_losses_of_a_run_without_a_cache(self, weight: str, nano_run: Path, tmp_path: Path) -> None:
        runs = runs_of(nano_run, tmp_path, 2)
        cached = runs.train(WEIGHTS[weight], seed=3)
        config = runs.variant_config(WEIGHTS[weight], seed=3)
        loop.train(replace(config, data=replace(config.data, cache="")), tmp_path / "fresh", progress=False)
        losses = [[line["loss"] for line in read_lines(run / "metrics.jsonl")] for run in (cached, tmp_path / "fresh")]
        assert len(losses[0]) == 2
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class TestTheVariants:
    def test_of_a_seed_branch_off_trunks_and_see_the_same_data(self, nano_run: Path, tmp_path: Path) -> None:
        runs = Runs(nano_run, tmp_path, 8, 30)
        configs = {variant: runs.variant_config(variant, 2) for variant in VARIANTS}
        for variant, config in configs.items():
            assert config.model.start == (str(runs.trunk_of(variant.trunk)),)
        assert {variant.trunk for variant in configs} == {"stage1_alone", "stage2", "no_siglip"}
        assert {(config.run.seed, config.run.steps, config.data.list) for config in configs.values()} == {
            (2, 8, str(tmp_path / "data" / "data.txt"))
        }

    def test_differ_only_in_what_is_claimed(self, nano_run: Path, tmp_path: Path) -> None:
        runs = Runs(nano_run, tmp_path, 8, 30)
        full = runs.variant_config(FULL, 0)
        assert runs.variant_config(RAW, 0) == full
        for weight, variant in WEIGHTS.items():
            assert runs.variant_config(variant, 0) == replace(full, stage=replace(full.stage, weight=weight))
        for one, other in (
            (full, runs.variant_config(NO_SIGLIP, 0)),
            (runs.trunk_config("stage2"), runs.trunk_config("no_siglip")),
        ):
            assert one.stage.use_siglip
            assert not other.stage.use_siglip
            assert set(one.stage.parts) - set(other.stage.parts) == {"siglip_projector"}
            stage = replace(other.stage, use_siglip=True, parts=one.stage.parts)
            assert replace(other, stage=stage, model=one.model) == one

    def test_stage_1_alone_trains_as_long_as_both_stages(self, nano_run: Path, tmp_path: Path) -> None:
        runs = Runs(nano_run, tmp_path, 8, 30)
        trunk, branch = runs.trunk_config("stage1_alone"), runs.variant_config(STAGE1_ALONE, 0)
        other = runs.trunk_config("stage2")
        assert trunk.run.steps == runs.stage1_steps + other.run.steps == runs.stage1_steps + 30
        assert branch.run.steps == 8
        assert {*trunk.stage.parts, *branch.stage.parts} == {"denoise_projector"}
        assert trunk.model.start == ()
        assert other.model.start == (str(runs.trunk_of("stage1")),)

    def test_trunks_have_no_edit_weight(self, nano_run: Path, tmp_path: Path) -> None:
        runs = Runs(nano_run, tmp_path, 8, 30)
        names = ("stage1", "stage1_alone", "stage2", "no_siglip")
        assert {runs.trunk_config(name).stage.weight for name in names} == {"none"}

    def test_see_other_samples_and_noise_than_their_trunks(self, nano_run: Path, tmp_path: Path) -> None:
        runs = Runs(nano_run, tmp_path, 8, 30)
        seeds = {runs.trunk_config(name).run.seed for name in ("stage1", "stage1_alone", "stage2", "no_siglip")}
        assert not seeds & {runs.variant_config(variant, seed).run.seed for variant in VARIANTS for seed in range(100)}
        assert runs.trunk_config("stage1").run.seed != runs.trunk_config("stage2").run.seed
        assert runs.trunk_config("no_siglip").run.seed == runs.trunk_config("stage2").run.seed

    def test_include_each_edit_weight_and_none(self) -> None:
        assert set(WEIGHTS) == {*WEIGHT_FUNCTIONS, "none"}
        assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) == 8


class TestACheck:
    def test_writes_a_page_plots_and_scores(self, checked: tuple[Path, ClaimsReport]) -> None:
        folder, report = checked
        names = {file.name for file in folder.iterdir() if file.is_file()}
        assert names == {
            "REPORT.md",
            "claims.json",
            "claims_reference.png",
            "claims_weights.png",
            "settings.json",
            "lock",
        }
        assert (folder / "REPORT.md").read_text() == report.text()
        assert "not decided" in report.text()
        assert not (folder / "exported").exists()
        assert len(list((folder / "results").iterdir())) == len(VARIANTS)

    def test_trains_on_tasks_of_the_evaluated_kinds(self, checked: tuple[Path, ClaimsReport]) -> None:
        folder = checked[0] / "data"
        rows = [row for name in ("edits.json", "others.json") for row in json.loads((folder / name).read_text())]
        assert {row["id"].rsplit("-", 1)[0] for row in rows} <= set(KINDS)
        assert len(rows) == 2 * RECIPE.stage2.batch  # one step of the trunk and one of a branch

    def test_in_two_processes_has_the_results_of_one(
        self,
        nano_run: Path,
        checked: tuple[Path, ClaimsReport],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> None:
        monkeypatch.setattr(claims_train, "stage_config", stage_config)  # as in the other processes
        reported: list[tuple[Any, ...]] = []
        for name in ("one", "two"):
            shutil.copytree(checked[0] / "results", tmp_path / name / "results")
            for variant in (FULL, RAW, NO_SIGLIP):
                (tmp_path / name / "results" / f"{variant.name}-seed-0.json").unlink()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in each of two processes here; the number of threads changes rounding
        request.addfinalizer(lambda: torch.set_num_threads(threads))
        alone = check(nano_run, tmp_path / "one")
        together = check(nano_run, tmp_path / "two", processes=2, progress=lambda *step: reported.append(step))
        assert together.json() == alone.json()
        # A job comes after its dependencies; the order of two parallel jobs is not defined.
        steps = [step for step in reported if step[0] == "variants"]
        assert [step[1:3] for step in steps] == [(number, 5) for number in (1, 2, 3, 4, 5)]
        order = [step[3]["last"] for step in steps]
        assert order[0] == "stage 1"
        assert set(order[1:]) >= {"trunk stage2", "trunk no siglip"}
        for branch in (name for name in order if name.startswith("seed 0")):
            trunk = "trunk no siglip" if NO_SIGLIP.label in branch else "trunk stage2"
            assert order.index(trunk) < order.index(branch)

    def test_raises_the_error_of_a_failed_process(self, nano_run: Path, tmp_path: Path) -> None:
        broken = tmp_path / "nano"
        shutil.copytree(nano_run, broken)
        claims_folder = tmp_path / "claims"
        (claims_folder / "runs").mkdir(parents=True)
        (claims_folder / "runs" / "trunk").write_text("in the way")
        with pytest.raises(ValueError, match="trunk"):
            check(broken, claims_folder, processes=2)

    def test_that_is_finished_trains_nothing(
        self, nano_run: Path, checked: tuple[Path, ClaimsReport], no_training: None
    ) -> None:
        folder, report = checked
        assert check(nano_run, folder).json() == report.json()

    def test_that_was_killed_resumes_with_what_is_missing(
        self, nano_run: Path, checked: tuple[Path, ClaimsReport], tmp_path: Path, no_training: None
    ) -> None:
        folder, report = checked
        killed = tmp_path / "killed"
        shutil.copytree(folder, killed)
        (killed / "results" / "full-seed-0.json").unlink()
        (killed / "exported" / "raw-seed-0").mkdir(parents=True)
        reported: list[tuple[Any, ...]] = []
        assert check(nano_run, killed, progress=lambda *step: reported.append(step)).json() == report.json()
        assert {name for name, *_ in reported} == {"seed 0: stage 2"}
        assert reported[-1][1:3] == (9, 9)

    def test_with_more_tasks_evaluates_again_without_training(
        self,
        nano_run: Path,
        checked: tuple[Path, ClaimsReport],
        tmp_path: Path,
        no_training: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        longer, counts = tmp_path / "longer", []

        def examine(model: Any, count: int, *_: Any, **__: Any) -> SimpleNamespace:
            counts.append(count)
            return SimpleNamespace(examined=())

        shutil.copytree(checked[0], longer)
        monkeypatch.setattr(claims_exam, "examine", examine)
        report = check(nano_run, longer, count=2)
        assert counts == [2] * len(VARIANTS)
        assert {claim.verdict for claim in report.claims} == {"not decided"}

    def test_that_is_interrupted_stops(self, nano_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claims_train, "train", lambda *_: SimpleNamespace(interrupted=True))
        with pytest.raises(KeyboardInterrupt):
            check(nano_run, tmp_path)


class TestTheCommand:
    def test_prints_each_verdict_and_the_path_of_the_page(
        self, nano_run: Path, checked: tuple[Path, ClaimsReport], monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        folder, report = checked
        given: list[tuple[Any, ...]] = []
        named: list[dict[str, int]] = []
        monkeypatch.setattr(
            claims, "check_claims", lambda *some, **others: given.append(some) or named.append(others) or report
        )
        line = ["--run", str(nano_run), "--to", str(folder), "--seeds", "0,4", "--steps", "7", "--count", "3"]
        line += ["--device", "cpu", "--batch", "5", "--processes", "2", "--trunk-steps", "11"]
        assert main(["eval", "claims", *line]) == 0
        assert given[0][:-1] == (nano_run, folder, [0, 4], 7, 3, "cpu")
        assert named == [{"batch": 5, "processes": 2, "trunk_steps": 11}]
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "not decided: Stage 1 alone cannot preserve the reference as stage 2 does."
        assert lines[-1] == str(folder / "REPORT.md")
        assert len(lines) == len(report.claims) + 1

    def test_has_the_defaults_of_the_function(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[inspect.BoundArguments] = []
        signature = inspect.signature(claims.check_claims)

        def stand_in(*some: Any, **others: Any) -> Any:
            given.append(signature.bind(*some, **others))
            return SimpleNamespace(claims=())

        monkeypatch.setattr(claims, "check_claims", stand_in)
        assert main(["eval", "claims"]) == 0
        defaults = {
            name: value for name, value in given[0].arguments.items() if name not in ("nano_run", "folder", "progress")
        }
        assert defaults.pop("seeds") == list(claims.SEEDS)
        assert defaults == {name: signature.parameters[name].default for name in defaults}

    def test_rejects_seeds_that_are_not_integers(self, capsys: Any) -> None:
        assert main(["eval", "claims", "--seeds", "0,one"]) == 2
        assert "--seeds is '0,one'; give integers" in capsys.readouterr().err

    def test_rejects_a_missing_run(self, tmp_path: Path, capsys: Any) -> None:
        assert main(["eval", "claims", "--run", str(tmp_path / "none"), "--to", str(tmp_path / "to")]) == 2
        assert "is not a run of nano with stand-ins" in capsys.readouterr().err


class TestTheShippedPage:
    def test_agrees_with_its_scores_over_three_seeds_or_more(self) -> None:
        page = (SHAPES / "REPORT.md").read_text(encoding="utf-8")
        numbers = json.loads((SHAPES / "claims.json").read_text(encoding="utf-8"))
        assert len(numbers["settings"]["seeds"]) >= MIN_SEEDS
        names = ["stages", "siglip", *(f"weight_{weight}" for weight in WEIGHT_FUNCTIONS), "ema"]
        assert [claim["name"] for claim in numbers["claims"]] == names
        for number, claim in enumerate(numbers["claims"], 1):
            assert f"| {number} | {claim['sentence']} | **{claim['verdict']}** |" in page

    def test_shows_plots_in_its_folder(self) -> None:
        page = (SHAPES / "REPORT.md").read_text(encoding="utf-8")
        plots = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
        assert plots == ["claims_reference.png", "claims_weights.png"]
        for plot in plots:
            with Image.open(SHAPES / plot) as picture:
                assert min(picture.size) > 200


class TestWhatCannotBeChecked:
    def test_a_run_without_a_starting_checkpoint_is_rejected(self, nano_run: Path, tmp_path: Path) -> None:
        begun = tmp_path / "nano"
        shutil.copytree(nano_run, begun)
        shutil.rmtree(begun / "start")
        shutil.rmtree(begun / "standins" / "siglip")
        with pytest.raises(ValueError, match=r"missing: start, standins/siglip/config\.json\. Run"):
            check(begun, tmp_path / "claims")
        assert not (tmp_path / "claims").exists()

    def test_a_folder_without_a_run_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"missing: recipe\.json, start, standins/flux/model_index\.json, .*\. Run"
        ):
            check(tmp_path / "nothing", tmp_path / "claims")

    def test_an_invalid_recipe_is_named(self, nano_run: Path, tmp_path: Path) -> None:
        broken = tmp_path / "nano"
        shutil.copytree(nano_run, broken)
        (broken / "recipe.json").write_text("{}")
        with pytest.raises(
            ValueError, match=r"not a run of nano: its recipe\.json cannot be read .*\. Create one with"
        ):
            check(broken, tmp_path / "claims")

    def test_a_folder_of_other_settings_is_rejected(self, nano_run: Path, checked: tuple[Path, ClaimsReport]) -> None:
        with pytest.raises(ValueError, match=r"claims of other settings \(steps 1 instead of 2;.*\): choose"):
            check(nano_run, checked[0], steps=2)
        with pytest.raises(ValueError, match=r"claims of other settings \(trunk_steps 1 instead of 2;.*\): choose"):
            check(nano_run, checked[0], trunk_steps=2)
        with pytest.raises(ValueError, match=r"claims of other settings \(batch 2 instead of 1;.*\): choose"):
            check(nano_run, checked[0], batch=1)

    def test_a_folder_of_another_version_is_rejected(self, nano_run: Path, tmp_path: Path) -> None:
        (tmp_path / "settings.json").write_text('{"steps": 1}')
        with pytest.raises(ValueError, match="claims of another version: choose another folder"):
            check(nano_run, tmp_path)

    def test_runs_of_another_recipe_are_rejected(
        self, nano_run: Path, checked: tuple[Path, ClaimsReport], tmp_path: Path
    ) -> None:
        changed, folder = tmp_path / "nano", checked[0]
        shutil.copytree(nano_run, changed)
        write_recipe(changed, replace(RECIPE, stage2=replace(LENGTH, learning_rate=0.5)))
        with pytest.raises(ValueError, match=r"another configuration: .*optimizer\.lr was 0\.001 and is now 0\.5"):
            Runs(changed, folder, 1, 1).train(FULL, 0)
        with pytest.raises(ValueError, match=r"other settings \(stage2 .*0\.001.* instead of .*0\.5"):
            check(changed, folder)

    def test_no_job_starts_after_one_that_failed_or_was_interrupted(self, tmp_path: Path) -> None:
        # Functions of the standard library, because another process may not be able to import this file.
        jobs = [Job("long", time.sleep, (120,)), Job("fails", int, ("no number",))]
        jobs += [Job(str(number), Path.touch, (tmp_path / str(number),)) for number in range(6)]
        begun = time.monotonic()
        with pytest.raises(ValueError, match="no number"):
            run_jobs([*jobs, Job("last", Path.touch, (tmp_path / "last",), ("0", "long"))], 2)
        assert time.monotonic() - begun < 60
        assert list(tmp_path.iterdir()) == []

    def test_a_job_starts_once_its_dependencies_are_done(self, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        jobs = [
            Job("long", time.sleep, (4,)),
            Job("renames", Path.rename, (first, second), ("makes",)),  # fails if it starts too early
            Job("makes", Path.touch, (first,)),
            Job("last", time.sleep, (0,), ("long", "renames")),
        ]
        ended: list[str] = []
        run_jobs(jobs, 2, lambda done, total, name: ended.append(f"{done} of {total}: {name}"))
        assert ended == ["1 of 4: makes", "2 of 4: renames", "3 of 4: long", "4 of 4: last"]
        assert list(tmp_path.iterdir()) == [second]

    def test_a_starting_checkpoint_with_other_weights_is_rejected(
        self, nano_run: Path, checked: tuple[Path, ClaimsReport], tmp_path: Path
    ) -> None:
        changed = tmp_path / "nano"
        shutil.copytree(nano_run, changed)
        with next((changed / "start").glob("*.safetensors")).open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"1234")
        with pytest.raises(ValueError, match=r"other settings \(start \w+ instead of \w+\): choose"):
            check(changed, checked[0])

    def test_a_folder_in_use_is_rejected(self, nano_run: Path, tmp_path: Path) -> None:
        with (
            locked(tmp_path / "lock", wait=False, busy=""),
            pytest.raises(ValueError, match="Another process is checking"),
        ):
            check(nano_run, tmp_path)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"seeds": ()}, r"The seeds are \[\]"),
            ({"seeds": (1, 1)}, r"The seeds are \[1, 1\]"),
            ({"seeds": (-1,)}, r"The seeds are \[-1\]"),
            ({"steps": 0}, "steps is 0"),
            ({"trunk_steps": 0}, "trunk_steps is 0"),
            ({"count": 0}, "count is 0"),
            ({"processes": 0}, "processes is 0"),
            ({"batch": 0}, "batch is 0"),
        ],
    )
    def test_settings_out_of_range_are_rejected(self, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            check(tmp_path, tmp_path, **settings)

    def test_a_damaged_result_is_named(
        self, nano_run: Path, checked: tuple[Path, ClaimsReport], tmp_path: Path
    ) -> None:
        damaged = tmp_path / "claims"
        shutil.copytree(checked[0], damaged)
        (damaged / "results" / "raw-seed-0.json").write_text('{"settings":')
        with pytest.raises(ValueError, match=r"raw-seed-0\.json' is damaged .* delete it"):
            check(nano_run, damaged)

    def test_without_matplotlib_nothing_is_started(
        self, nano_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims_report, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="Plotting needs matplotlib"):
            check(nano_run, tmp_path / "claims")
        assert not (tmp_path / "claims").exists()
