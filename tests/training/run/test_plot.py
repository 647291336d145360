"""Plots of one run, of a killed run, and of several runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.training.run.plot import plot, read_curves, smoothed

pytest.importorskip("matplotlib", reason="drawing is an extra")


def row(step: int, loss: float = 1.0, **others: Any) -> str:
    numbers = {"learning_rate": 1e-3, "gradient_norm": 0.5, "samples_per_second": 2.0}
    return json.dumps({"step": step, "loss": loss, **numbers, **others})


@pytest.fixture
def run(tmp_path: Path):
    def run(*lines: str, name: str = "run") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return run


def test_a_run_is_plotted_as_one_picture(run, tmp_path: Path) -> None:
    folder = run(*(row(step, loss=1 / step) for step in range(1, 50)))
    plot({"run": folder}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (1200, 800)
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10
    assert not list(tmp_path.glob("*.part"))


def test_several_runs_share_one_picture(run, tmp_path: Path) -> None:
    short, long = run(row(1), row(2), name="short"), run(*(row(step, 2.0) for step in range(1, 9)), name="long")
    plot({"short": short}, tmp_path / "one.png")
    plot({"short": short, "long": long}, tmp_path / "deep" / "both.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "deep" / "both.png").read_bytes()


def test_a_reward_that_is_only_watched_has_a_panel_of_its_own(run, tmp_path: Path) -> None:
    rewards = [row(step, reward=0.5, best=0.6, trained=0.5, kl=0.0) for step in (1, 2)]
    watched = run(
        *(row(step, reward=0.5, kl=None, **{"watched/oracle": 0.25 * step}) for step in (1, 2)), name="watched"
    )
    assert read_curves(watched).values["watched/oracle"] == (0.25, 0.5)
    plot({"alone": run(*rewards, name="alone")}, tmp_path / "alone.png")
    plot({"alone": tmp_path / "alone", "watched": watched}, tmp_path / "both.png")
    sizes = []
    for name in ("alone", "both"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes.append(picture.size)
    assert sizes == [(1800, 800), (2400, 800)]


def test_what_no_run_has_gets_no_panel(run, tmp_path: Path) -> None:
    idle = json.dumps({"step": 1, "reward": 0.5, "best": 0.6, "trained": 0.0, "loss": None, "kl": None})
    plot({"idle": run(idle)}, tmp_path / "idle.png")
    with Image.open(tmp_path / "idle.png") as picture:
        assert picture.size == (1200, 800)  # three panels instead of six


def test_a_truncated_last_line_is_ignored(run) -> None:
    assert read_curves(run(row(1), row(2), row(3)[:17])).steps == (1, 2)


def test_the_later_line_of_a_repeated_step_counts(run) -> None:
    curves = read_curves(run(row(1, 5.0), row(2, 4.0), row(3, 3.0), row(2, 2.0), row(3, 1.0)))
    assert curves.steps == (1, 2, 3)
    assert curves.values["loss"] == (5.0, 2.0, 1.0)


def test_a_step_without_a_loss_is_a_gap_and_not_an_error(run, tmp_path: Path) -> None:
    folder = run(row(1), json.dumps({"step": 2, "loss": None}), row(3))
    assert math.isnan(read_curves(folder).values["loss"][1])
    plot({"run": folder}, tmp_path / "curves.png")


def test_the_smoothed_curve_has_no_bias_at_its_start() -> None:
    assert smoothed([3.0, 3.0, 3.0], 10) == pytest.approx([3.0, 3.0, 3.0])
    assert smoothed([1.0, 2.0], 1) == [1.0, 2.0]
    assert smoothed([math.nan, 2.0, math.nan], 5)[1:] == pytest.approx([2.0, 2.0])
    assert math.isnan(smoothed([math.nan], 5)[0])


@pytest.mark.parametrize(
    ("lines", "words"),
    [((row(1), "{oops", row(3)), "Line 2 of"), (("{oops",), "has no steps yet"), ((), "has no steps yet")],
)
def test_runs_that_cannot_be_plotted_are_user_errors(run, lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_curves(run(*lines))


def test_a_folder_without_metrics_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        plot({"run": tmp_path}, tmp_path / "curves.png")
