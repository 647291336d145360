"""The rule by which a claim of the paper holds, and the page, whose text follows from the scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from uniworld.training.shapes.claims.exam import SMALL, TaskScore, edited_share, is_large, is_small
from uniworld.training.shapes.claims.report import ClaimsReport, mean_and_range, write_report
from uniworld.training.shapes.claims.rule import KEPT, PSNR, RIGHT, Claim, Comparison
from uniworld.training.shapes.claims.train import FULL, RAW, VARIANTS, WEIGHTS, Variant
from uniworld.training.shapes.exam.exam import exam_tasks
from uniworld.training.shapes.tasks.tasks import EDITS
from uniworld.uniworld_core.editing.weights import WEIGHT_FUNCTIONS


def score(kind: str = "add", edited: float = 0.05, right: bool = True, kept: float | None = 0.9) -> TaskScore:
    return TaskScore(kind, edited, right, kept, None if kept is None else 10 + 20 * kept)


def report_of(kept: Callable[[Variant, int], float], right: Callable[[Variant, int, bool], bool]) -> ClaimsReport:
    """A report of made-up scores: `kept(variant, seed)`, and `right(variant, seed, small)`."""
    scores = {
        variant: {
            seed: tuple(
                score(kind, share, right(variant, seed, share < SMALL), kept(variant, seed)) for kind, share in SHARES
            )
            for seed in range(3)
        }
        for variant in VARIANTS
    }
    return ClaimsReport(
        scores,
        stage1_steps=400,
        trunk_steps=1500,
        steps=500,
        batch=64,
        samples=30000,
        count=40,
        paint_steps=28,
    )


SHARES = (("add", 0.04), ("remove", 0.08), ("background", 0.9), ("reconstruct", 0.0))


def compared(differences: Sequence[float | None]) -> Comparison:
    theirs = tuple(None if value is None else 0.5 for value in differences)
    return Comparison(KEPT, "all", tuple(None if value is None else 0.5 + value for value in differences), theirs)


class TestTheRule:
    @pytest.mark.parametrize(
        ("differences", "outcome"),
        [
            ((0.2, 0.25, 0.3), "higher"),
            ((-0.2, -0.25, -0.3), "lower"),
            ((0.1, 0.2, 0.4), "no clear difference"),  # the same sign, but the range exceeds the mean
            ((0.3, -0.1, 0.3), "no clear difference"),
            ((0.0, 0.0, 0.0), "no clear difference"),
            ((0.0005, 0.0005, 0.0005), "no clear difference"),  # consistent, but too small
            ((0.2, 0.25), "too few seeds"),
            ((0.2, None, 0.3), "not measured"),
        ],
    )
    def test_a_difference_counts_if_it_exceeds_its_range_over_three_seeds(
        self, differences: Sequence[float | None], outcome: str
    ) -> None:
        assert compared(differences).outcome == outcome

    @pytest.mark.parametrize(
        ("outcomes", "verdict"),
        [
            ((0.2, 0.2), "holds"),
            ((0.2, 0.0), "holds in part"),
            ((0.2, -0.2), "holds in part"),
            ((0.0, 0.0), "does not hold"),
            ((0.0, -0.2), "does not hold"),
            ((-0.2, -0.2), "the opposite holds"),
        ],
    )
    def test_a_claim_holds_if_every_decisive_measure_is_higher(self, outcomes: Sequence[float], verdict: str) -> None:
        decisive = tuple(compared([value] * 3) for value in outcomes)
        assert Claim("", "", FULL, RAW, decisive, (compared([0.0] * 3),)).verdict == verdict

    def test_fewer_than_three_seeds_decide_nothing(self) -> None:
        assert Claim("", "", FULL, RAW, (compared([0.2, 0.2]),), ()).verdict == "not decided"


class TestSmallAndLargeEdits:
    def test_held_out_edits_are_far_from_the_threshold(self) -> None:
        tasks = [task for kind in EDITS for task in exam_tasks(kind, 12)]
        shares = [edited_share(task) for task in tasks]
        assert not [share for share in shares if 0.8 * SMALL < share < 1.2 * SMALL]
        assert {task.kind for task, share in zip(tasks, shares) if share > SMALL} >= {"background", "extract", "style"}
        assert {task.kind for task, share in zip(tasks, shares) if share <= SMALL} >= {"add", "remove", "recolour"}

    def test_a_reconstruction_is_neither(self) -> None:
        for one in (score("reconstruct", edited=0.0), score("reconstruct", edited=1.0)):
            assert not is_small(one)
            assert not is_large(one)
        assert is_small(score("add", edited=0.05))
        assert is_large(score("add", edited=0.5))


class TestThePage:
    @pytest.fixture
    def as_published(self) -> ClaimsReport:
        """Stage 2 keeps more than all others; each weight improves small edits and fails large ones."""
        return report_of(
            lambda variant, seed: (0.9 if variant is FULL else 0.4) + 0.01 * seed,
            lambda variant, seed, small: (small != (variant is WEIGHTS["none"])) and variant is not RAW,
        )

    def test_says_which_claims_hold_with_the_numbers(self, as_published: ClaimsReport) -> None:
        assert {claim.name: claim.verdict for claim in as_published.claims} == {
            "stages": "holds",
            "siglip": "holds",
            "ema": "holds",
            **{f"weight_{name}": "holds" for name in WEIGHT_FUNCTIONS},
        }
        text = as_published.text()
        assert "| 1 | Stage 1 alone cannot preserve the reference as stage 2 does. | **holds** |" in text
        assert "91.0 % (90.0 to 92.0) | 41.0 % (40.0 to 42.0) | +50.0 points (+50.0 to +50.0) | higher |" in text
        assert "PSNR of the untouched area is higher, +10.0 dB (+10.0 to +10.0)" in " ".join(text.split())

    def test_shows_each_weight_on_large_edits_as_well(self, as_published: ClaimsReport) -> None:
        line = next(line for line in as_published.text().splitlines() if "| large edits |" in line)
        assert line.startswith("| tasks done right | large edits | 0.0 %")
        assert line.endswith("| lower |")
        assert "In addition, tasks done right (large edits) is lower, -100.0 points" in " ".join(
            as_published.text().split()
        )
        assert "| measure | tasks | linear weight | no weight | difference | outcome |" in as_published.text()

    def test_says_in_words_what_does_not_hold(self) -> None:
        report = report_of(lambda variant, seed: 0.5 + 0.1 * seed * (variant is FULL), lambda *_: False)
        assert {claim.verdict for claim in report.claims} == {"does not hold"}
        words = " ".join(report.text().split())
        assert (
            "**Does not hold.** Stage 2 compared with stage 1 alone: objects kept shows no difference beyond" in words
        )

    def test_says_when_no_difference_could_show(self) -> None:
        for share in (0.0, 1.0):
            assert "no difference could show" in " ".join(report_of(lambda *_: share, lambda *_: False).text().split())  # noqa: B023
        text = report_of(lambda *_: 0.5, lambda variant, seed, small: small).text()
        assert (
            "(large edits) shows no difference beyond the range over the seeds, +0.0 points (+0.0 to +0.0); both values"
            in " ".join(text.split())
        )

    def test_says_so_only_if_there_is_no_difference(self) -> None:
        report = report_of(lambda variant, seed: 0.995 if variant is FULL else 0.986, lambda *_: False)
        kept = report.claims[0].decisive[0]
        assert (kept.outcome, kept.saturated) == ("higher", True)
        words = " ".join(report.text().split())
        assert "objects kept is higher, +0.9 points (+0.9 to +0.9); PSNR" in words

    def test_says_when_the_opposite_holds(self) -> None:
        report = report_of(lambda variant, seed: 0.3 if variant is FULL else 0.6, lambda *_: True)
        assert "**The opposite holds.** Stage 2 compared with stage 2 without SigLIP" in report.text()

    def test_explains_the_rule_the_training_and_every_variant(self, as_published: ClaimsReport) -> None:
        text = " ".join(as_published.text().split())
        assert "**The rule.**" in text
        assert (
            "Stage 1 takes 400 steps. Stage 2 starts from its averaged weights and takes 2000. The first 1500" in text
        )
        assert 'The variant "stage 2 without SigLIP" has its own trunk' in text
        assert 'The variant "stage 1 alone" is stage 1 throughout, 1900 steps and the branch.' in text
        assert "of the first seed's edits, 2 are small and 1 are large" in text
        assert all(f"| {variant.label} |" in text for variant in VARIANTS)

    def test_a_measure_without_a_value_is_none(self) -> None:
        assert mean_and_range([None, None], PSNR) == "none"
        assert mean_and_range([None, 20.0], PSNR) == "20.0 dB (20.0 to 20.0)"
        assert mean_and_range([0.1, -0.1], RIGHT, True) == "+0.0 points (-10.0 to +10.0)"

    def test_its_plots_are_small_pictures(self, as_published: ClaimsReport, tmp_path: Path) -> None:
        write_report(as_published, tmp_path)
        plots = sorted(tmp_path.glob("*.png"))
        assert [file.name for file in plots] == ["claims_reference.png", "claims_weights.png"]
        assert all(file.read_bytes()[:4] == b"\x89PNG" and file.stat().st_size < 60_000 for file in plots)
        assert all(f"]({file.name})" in as_published.text() for file in plots)

    def test_its_scores_are_listed_by_seed(self, as_published: ClaimsReport) -> None:
        whole = json.loads(as_published.json())
        assert whole["variants"]["full"]["all"]["objects kept"] == pytest.approx([0.9, 0.91, 0.92])
        assert whole["claims"][0]["comparisons"][0]["outcome"] == "higher"
        assert whole["settings"]["seeds"] == [0, 1, 2]
