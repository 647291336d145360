"""The evaluation: a perfect model reaches every level, and the report of another one says where it fails."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from uniworld.training.shapes.exam.exam import exam_tasks, examine, examine_vae
from uniworld.training.shapes.exam.report import ExamReport, ExamResult
from uniworld.training.shapes.exam.sheet import contact_sheet, write_sheet
from uniworld.training.shapes.judge.verdict import Verdict
from uniworld.training.shapes.tasks.tasks import KINDS, ShapesTask
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import UniWorldError


class Stand:
    """Replaces a UniWorld in the evaluation; paints and answers from a list, by default correctly."""

    checkpoint, dtype, loras = Path("stand"), torch.float32, ()

    def __init__(
        self, tasks: Sequence[ShapesTask], picture: str = "target", head: bool = True, paints: bool = True
    ) -> None:
        self.picture, self.paints = picture, paints
        # Several tasks may have the same prompt; their references differ.
        self.tasks = {self.key(task.prompt, task.references): task for task in tasks}
        self.understanding = SimpleNamespace(task_head=object() if head else None)

    @staticmethod
    def key(prompt: str, pictures: Sequence[Image.Image]) -> tuple[Any, ...]:
        return (prompt, *(picture.tobytes() for picture in pictures))

    def known(self, prompts: Sequence[str], references: Sequence[Any]) -> list[ShapesTask]:
        return [self.tasks[self.key(prompt, pictures)] for prompt, pictures in zip(prompts, references)]

    def reference(self, pictures: list[Image.Image], use_siglip: bool) -> list[Image.Image]:
        return pictures

    def encode(self, prompts: Sequence[str], references: Sequence[Any], use_t5: bool) -> list[ShapesTask]:
        return self.known(prompts, references)

    def sample(
        self, tasks: list[ShapesTask], height: int, width: int, steps: int, guidance: float, seed: list[int], **_: str
    ) -> Any:
        assert len(seed) == len(tasks)
        pictures = [task.target if self.picture == "target" else (*task.references, task.target)[0] for task in tasks]
        return torch.tensor(np.stack([np.asarray(picture) for picture in pictures])) / 255

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def understand(self, prompts: Sequence[str], references: Sequence[Any], max_new_tokens: int) -> list[str]:
        return [task.answer if self.picture == "target" else "fish" for task in self.known(prompts, references)]

    def route(self, prompts: Sequence[str], references: Sequence[Any]) -> SimpleNamespace:
        right = [(task.kind != "question") == self.paints for task in self.known(prompts, references)]
        return SimpleNamespace(paint=torch.tensor(right))


def examined(count: int = 4, **stand: Any) -> ExamReport:
    tasks = [task for kind in KINDS for task in exam_tasks(kind, count)]
    return examine(Stand(tasks, **stand), count, batch=3)  # type: ignore[arg-type]


class TestTheModelThatIsAlwaysRight:
    def test_reaches_every_level(self) -> None:
        report = examined()
        assert [one for one in report.examined if not one.verdict.right] == []
        assert [level.name for level in report.levels() if not level.reached] == []

    def test_is_evaluated_on_every_kind(self) -> None:
        rows = examined(count=3).kinds()
        assert [row.kind for row in rows] == list(KINDS)
        assert {row.count for row in rows} == {3}
        assert {row.right for row in rows} == {1.0}


class TestTheModelThatDoesNothing:
    def test_reaches_no_level_of_the_edits_with_reasons(self) -> None:
        report = examined(picture="reference", paints=False)
        reached = {level.name: level.reached for level in report.levels()}
        assert not any(
            reached[name] for name in ("edits right", "edits right, worst kind", "answers right", "routing right")
        )
        wrong = json.loads(report.json())["wrong"]
        assert all(one["reasons"] for one in wrong)
        assert "the answer is 'fish'" in next(one["reasons"][0] for one in wrong if one["kind"] == "question")

    def test_a_checkpoint_without_a_routing_head_has_no_routing_score(self) -> None:
        report = examined(count=1, head=False)
        assert {row.routed_right for row in report.kinds()} == {None}
        level = next(level for level in report.levels() if level.name == "routing right")
        assert level.value is None
        assert not level.reached


class TestTheReport:
    def test_the_table_has_a_line_for_each_kind_and_each_level(self) -> None:
        text = examined(count=1).text()
        assert all(any(line.startswith(f"{kind} ") for line in text.splitlines()) for kind in KINDS)
        assert text.count(" reached") == 7

    def test_lines_normals_and_poses_have_their_own_scores(self) -> None:
        rows = {row.kind: row for row in examined(count=2).kinds()}
        assert all(rows[kind].edge_f1 == 1 for kind in ("edge", "hed", "mlsd", "sketch"))
        assert {kind for kind, row in rows.items() if row.angle is not None} == {"normal"}
        assert {kind: row.joints for kind, row in rows.items() if row.joints is not None} == {"openpose": 1}
        heads = examined(count=1).text().splitlines()[0].split()
        assert {"angle", "joints"} <= set(heads)

    def test_a_level_that_is_not_reached_says_so_with_the_number(self) -> None:
        task = exam_tasks("add", 1)[0]
        verdicts = (Verdict(True, kept=1.0, psnr=30.0), Verdict(False, ("no star",), kept=0.5, psnr=20.0))
        report = ExamReport({}, tuple(ExamResult(task, verdict) for verdict in verdicts))
        levels = {level.name: level for level in report.levels()}
        assert levels["edits right"].value == 0.5
        assert levels["objects kept"].value == 0.75
        assert not levels["edits right"].reached
        line = next(line for line in report.text().splitlines() if line.startswith("edits right "))
        assert line.split() == ["edits", "right", "0.85", "0.500", "not", "reached"]
        assert "not evaluated" in next(line for line in report.text().splitlines() if line.startswith("text to image"))

    def test_json_contains_settings_levels_kinds_and_reasons(self) -> None:
        whole = json.loads(examined(count=1).json())
        assert set(whole) == {"settings", "levels", "kinds", "wrong"}
        assert whole["settings"]["count"] == 1
        assert whole["settings"]["split"] == "test"

    def test_the_sheet_has_a_row_for_each_kind_and_marks_right_and_wrong(self, tmp_path: Path) -> None:
        right, wrong = contact_sheet(examined(count=2)), contact_sheet(examined(count=2, picture="reference"))
        assert right.height == wrong.height
        assert right.height % len(KINDS) == 0
        green, red = (20, 150, 40), (210, 30, 30)
        assert green in {color for _, color in right.getcolors(1 << 24) or []}
        assert red in {color for _, color in wrong.getcolors(1 << 24) or []}
        write_sheet(examined(count=1), tmp_path / "new" / "sheet.png")
        assert [file.name for file in (tmp_path / "new").iterdir()] == ["sheet.png"]


class TestTheTasks:
    def test_a_longer_evaluation_starts_with_the_tasks_of_a_shorter_one(self) -> None:
        assert exam_tasks("compose", 5) == exam_tasks("compose", 9)[:5]

    def test_another_seed_has_other_tasks(self) -> None:
        assert exam_tasks("compose", 5, seed=1) != exam_tasks("compose", 5)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kinds": ["sing"]}, r"\['sing'\] are unknown; choose some of text_to_image"),
            ({"count": 0}, "The count is 0"),
            ({"batch": 0}, "The batch is 0"),
            ({"seed": -1}, "The seed is -1"),
        ],
    )
    def test_invalid_arguments_are_rejected(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            examine(Stand([]), **settings)  # type: ignore[arg-type]


class Keeping:
    """A VAE that is lossless, or loses details."""

    def __init__(self, loses: int = 1) -> None:
        self.loses = loses

    def encode(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        return image_BHWC[:, :: self.loses, :: self.loses]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.repeat_interleave(self.loses, 1).repeat_interleave(self.loses, 2)


class TestTheVaeAlone:
    def test_a_lossless_one_keeps_every_task_right(self) -> None:
        report = examine_vae(Keeping(), count=3, batch=2)  # type: ignore[arg-type]
        assert {row.right for row in report.kinds()} == {1.0}
        assert [row.kind for row in report.kinds()] == [kind for kind in KINDS if kind != "question"]

    def test_one_that_loses_shapes_is_detected(self) -> None:
        report = examine_vae(Keeping(loses=16), count=4, kinds=["add"])  # type: ignore[arg-type]
        assert report.kinds()[0].right == 0

    def test_it_does_not_accept_questions(self) -> None:
        with pytest.raises(ValueError, match=r"\['question'\] are unknown"):
            examine_vae(Keeping(), kinds=["question"])  # type: ignore[arg-type]


def test_a_real_model_is_evaluated_end_to_end() -> None:
    model = UniWorld.from_pretrained("tiny", dtype=torch.float32)
    reported: list[tuple[str, int, int]] = []
    kinds = ("text_to_image", "compose", "question")
    report = examine(model, 2, kinds, steps=2, progress=lambda *step: reported.append(step))
    assert reported == [(kind, 2, 2) for kind in kinds]
    assert all((one.painted is None) == (one.task.kind == "question") for one in report.examined)
    assert {one.painted.size for one in report.examined if one.painted} == {(128, 128)}
    again = examine(model, 1, kinds, steps=2, solver="euler", cache="off")
    assert report.settings["solver"] == "euler"
    with pytest.raises(UniWorldError, match="solver is 'heun'"):
        examine(model, 1, ["add"], steps=2, solver="heun")
    alone, together = (np.asarray(some.of("compose")[0].painted, np.int16) for some in (again, report))
    assert np.abs(alone - together).max() <= 1  # of 255: batching changes the rounding
