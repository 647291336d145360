"""nano's post-training: fresh tasks, the oracle's reward, the measurement and its report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from uniworld.__main__ import main
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.config.file import load_any
from uniworld.training.editr1.loop import open_base_model
from uniworld.training.editr1.reward.protocol import RewardFailure, RewardItem, checked_scores
from uniworld.training.shapes.editr1.gain import paired_gain
from uniworld.training.shapes.editr1.measure import SAMPLERS, TaskResult
from uniworld.training.shapes.editr1.provide import OracleReward, ShapesPrompts, providers, shaped
from uniworld.training.shapes.editr1.report import report
from uniworld.training.shapes.judge.verdict import Verdict
from uniworld.training.shapes.tasks.split import holds_held_out
from uniworld.uniworld_core.errors import UniWorldError


def test_tasks_are_of_the_training_split_and_in_turn_of_every_kind() -> None:
    prompts = ShapesPrompts(("depth", "style"), 3, 64)
    read = [prompts.read(index) for index in range(6)]
    assert [one.key.partition("-")[0] for one in read] == ["depth", "style"] * 3
    assert len({(one.prompt, one.references[0].tobytes()) for one in read}) == 6
    assert not any(holds_held_out(scene) for one in read for scene in one.task.before)  # type: ignore[attr-defined]
    assert prompts.read(4).references[0].tobytes() == read[4].references[0].tobytes()
    assert ShapesPrompts(("depth",), 4, 64).read(0).references[0].tobytes() != read[0].references[0].tobytes()
    for kinds, side in ((("question",), 64), (("depht",), 64), (("depth",), 65)):
        with pytest.raises(UniWorldError):
            ShapesPrompts(kinds, 0, side)


def test_the_oracle_rewards_the_target_and_not_the_reference() -> None:
    prompt = ShapesPrompts(("depth",), 3, 64).read(0)
    task: Any = prompt.task
    items = [
        RewardItem(prompt.prompt, prompt.references, one, task=task) for one in (task.target, prompt.references[0])
    ]
    right, wrong = checked_scores(OracleReward(), items)
    assert right == 1.0
    assert isinstance(wrong, float)
    assert wrong < 0.5
    (other,) = checked_scores(OracleReward(), [RewardItem("Paint it.", (), Image.new("RGB", (64, 64)))])
    assert isinstance(other, RewardFailure)


def test_the_reward_falls_with_the_number_of_faults() -> None:
    verdicts = [Verdict(True), *(Verdict(False, ("fault",) * count) for count in (1, 2, 3, 9))]
    assert [round(shaped(verdict), 3) for verdict in verdicts] == [1.0, 0.333, 0.167, 0.0, 0.0]


def test_the_oracle_needs_the_world_of_shapes() -> None:
    config = load_any("editr1_uniworld", ["data.metadata=data.jsonl", "reward.name=oracle"])
    with pytest.raises(UniWorldError, match=r"set data\.shapes"):
        providers().open_reward(config)  # type: ignore[arg-type]


def test_a_gain_is_paired() -> None:
    rng = np.random.default_rng(0)
    before = {kind: rng.integers(0, 2, 200).tolist() for kind in ("depth", "style")}
    after = {
        kind: [max(value, float(index % 10 == 0)) for index, value in enumerate(values)]
        for kind, values in before.items()
    }
    gain = paired_gain(before, after)
    wanted = 100 * np.mean([np.mean(after[kind]) - np.mean(before[kind]) for kind in before])
    assert gain.points == pytest.approx(wanted)
    assert 0 < gain.low < gain.points < gain.high < 10  # unpaired, the interval would be 14 points wide
    same = paired_gain(before, before)
    assert (same.points, same.low, same.high) == (0.0, 0.0, 0.0)


def write_run(folder: Path, after: float) -> None:
    """A run of an epoch with made-up measurements: half of all tasks are right before, and a fraction `after` later."""
    config = Path(__file__).parents[4] / "training" / "config" / "presets" / "nano_editr1.toml"
    (folder / "config.toml").write_bytes(config.read_bytes())
    row = {"step": 1, "reward": 0.5, "best": 0.75, "trained": 0.4, "gradient_norm": 1.0, "loss": 1.0, "failed": 0}
    (folder / "metrics.jsonl").write_text(json.dumps(row | {"seconds": 3600.0, "updates": 1}) + "\n")
    for weights, share in (("start", 0.5), ("step-00000001", after)):
        for kind in ("depth", "detection", "style", "compose", "edge"):
            file = folder / "measured" / weights / SAMPLERS[1].name / f"{kind}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            now = 0.2 if kind == "edge" and weights != "start" else share
            file.write_text(json.dumps([vars(TaskResult(index < now * 100, 0.5)) for index in range(100)]))


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (0.6, "**a gain is shown**,"),
        (0.52, "**a gain is shown, below the 5 points asked for**,"),
        (0.5, "**no gain is shown**,"),
        (0.4, "**no gain is shown**,"),
    ],
)
def test_the_report_claims_what_the_numbers_show(tmp_path: Path, after: float, verdict: str) -> None:
    write_run(tmp_path, after)
    text = report(tmp_path, "step-00000001", "the test")
    (line,) = (line for line in text.splitlines() if line.startswith("6 steps of dpm2: "))
    assert verdict in line
    assert f"went from 50.0 to {100 * after:.1f} %" in line
    assert (
        "Of 1 other kinds, these fell beyond their noise: edge. With Bonferroni's correction for 1 comparisons: edge."
        in line
    )
    assert "28 steps of euler: not measured (depth, detection, style, compose)." in text
    assert re.search(rf"\| depth \| 100 \| 50\.0 % \| {100 * after:.1f} % \|", text)


def test_kinds_that_are_only_rehearsed_are_among_the_others(tmp_path: Path) -> None:
    write_run(tmp_path, 0.4)
    text = report(tmp_path, "step-00000001", "the test", ["depth", "detection"])
    (line,) = (line for line in text.splitlines() if line.startswith("6 steps of dpm2: "))
    assert "The mean of depth, detection over 200 tasks" in line
    assert "Of 3 other kinds, these fell beyond their noise: style, compose, edge." in line


def test_bonferronis_interval_is_wider(tmp_path: Path) -> None:
    before = {"depth": [1.0] * 60 + [0.0] * 40}
    after = {"depth": [0.0] * 6 + [1.0] * 54 + [0.0] * 40}
    plain, corrected = paired_gain(before, after), paired_gain(before, after, level=1 - 0.05 / 15)
    assert plain.points == corrected.points == pytest.approx(-6)
    assert corrected.low < plain.low
    assert plain.high < 0 <= corrected.high


def test_a_run_is_measured_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        "editr1.groups=1",
        "editr1.group_size=2",
        "editr1.steps=1",
        "editr1.times=1",
        "run.steps=1",
        "run.sheet_every=0",
        "advantage.filter=none",
        "run.tensorboard=false",
        "run.device=cpu",
    ]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["train", "nano_editr1_vlm", *arguments]) == 0
    capsys.readouterr()
    command = ["eval", "editr1", "runs/nano_editr1_vlm", "--count", "1", "--kinds", "add,depth", "--samplers", "dpm2-6"]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(Path("runs/nano_editr1_vlm/REPORT.md"))
    text = Path("runs/nano_editr1_vlm/REPORT.md").read_text(encoding="utf-8")
    assert "| add | 1 |" in text
    assert "6 steps of dpm2: not measured (compose, text_to_image)." in text
    assert "## Does it please its judge? (questions)" in text
    assert "| epochs | mean reward | oracle, not trained on | best of a group |" in text
    measured = sorted(Path("runs/nano_editr1_vlm/measured").rglob("*.json"))
    times = [file.stat().st_mtime_ns for file in measured]
    assert main(command) == 0
    assert [file.stat().st_mtime_ns for file in measured] == times
    (score,) = json.loads(next(file for file in measured if file.stem == "add").read_text())
    assert 0 <= score["scores"]["questions"] <= 1
    assert [
        one["scores"] for one in json.loads(next(file for file in measured if file.stem == "depth").read_text())
    ] == [{"questions": None}]
    for file in measured:
        file.unlink()
    assert main([*command, "--oracle-only"]) == 0
    assert json.loads(measured[0].read_text())[0]["scores"] == {}
    assert main(["eval", "editr1", "runs/nano_editr1_vlm", "--kinds", "question"]) == 2
    assert "question" not in capsys.readouterr().err.rpartition("choose some of")[2]
    assert main(["eval", "editr1", "runs/nano_editr1_vlm", "--samplers", "euler-3"]) == 2
    assert main(["eval", "editr1", "nothing"]) == 2


def test_a_side_that_nano_has_not_learned_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    def open_with(*settings: str) -> None:
        config = load_any("nano_editr1", settings)
        assert isinstance(config, EditR1Config)
        open_base_model(config, torch.device("cpu"))

    open_with()
    assert not [one for one in recwarn if "editr1.side" in str(one.message)]
    with pytest.warns(UserWarning, match=r"editr1\.side is 64, and nano knows only pictures of 128x128 pixels"):
        open_with("editr1.side=64")


def test_a_dry_run_prints_a_configuration_and_what_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        "model.checkpoint=tiny",
        'data.shapes=["depth"]',
        "reward.name=oracle",
        "run.device=cpu",
        "policy.rank=2",
    ]
    command = ["train", "editr1_uniworld", "--dry-run", *(part for one in settings for part in ("--set", one))]
    assert main(command) == 0
    out = capsys.readouterr().out
    Path("saved.toml").write_text(out, encoding="utf-8")
    assert load_any("saved.toml") == load_any("editr1_uniworld", settings)
    layers = int(re.search(r"in the adapters of (\d+) layers", out).group(1))  # type: ignore[union-attr]
    assert layers > 8
    assert out.endswith("\n# one backward pass each.\n# The reward is oracle.\n")
    several = ['reward.name=["oracle", "openai"]', "reward.weights=[3, 1]", "reward.url=http://a", "reward.model=a"]
    once = ["editr1.steps=1", "editr1.times=1", "editr1.old=on_policy", "loss.kl=0", "reward.watch=oracle"]
    assert main([*command, *(part for one in (*several, *once) for part in ("--set", one))]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("# The reward is 0.75 oracle + 0.25 openai, and oracle is only recorded.\n")
    assert "with 1 forward pass\n" in printed
    assert "at 1 noise level with 1 forward pass and\n" in printed
    assert main([*command, "--set", "reward.name=pleasant"]) == 2
    assert "'pleasant'; it must be one of" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["saved.toml"]
