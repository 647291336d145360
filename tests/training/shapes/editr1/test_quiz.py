"""nano's VLM as a judge of pictures, and the report about what an editor learns from a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.config.file import load_any
from uniworld.training.editr1.reward.protocol import RewardFailure, RewardItem, checked_scores
from uniworld.training.shapes.editr1.measure import TaskResult, judges, trained_kinds
from uniworld.training.shapes.editr1.provide import providers
from uniworld.training.shapes.editr1.quiz import QUIZ_KINDS, quiz
from uniworld.training.shapes.editr1.report_judge import auc, judge_table, judge_verdict, judged_kinds
from uniworld.training.shapes.tasks.tasks import KINDS, ShapesTask, make_task
from uniworld.training.shapes.world.draw import draw
from uniworld.training.shapes.world.scene import COLORS, GROUNDS, Ground, Scene
from uniworld.uniworld_core.errors import UniWorldError


def config_of(*overrides: str) -> EditR1Config:
    config = load_any("nano_editr1_vlm", ["run.device=cpu", *overrides])
    assert isinstance(config, EditR1Config)
    return config


def spoiled(task: ShapesTask) -> list[Image.Image]:
    """The correct picture with one object in another color, and on another ground."""
    scene = task.after
    assert scene is not None
    thing = scene.objects[0]
    other = replace(thing, color=next(color for color in COLORS if color != thing.color))
    ground = Ground(next(name for name in GROUNDS if name not in scene.ground.colors))
    return [draw(scene.swapped(thing, other)), draw(Scene(scene.objects, ground, scene.side))]


def test_nanos_vlm_prefers_the_correct_picture() -> None:
    reward = providers().open_reward(config_of())
    for kind in ("compose", "text_to_image", "remove"):
        task = make_task(kind, np.random.default_rng(5), "train", 128)
        assert task.target is not None
        pictures = [task.target, *spoiled(task)]
        items = [RewardItem(task.prompt, task.references, picture, task=task) for picture in pictures]
        right, *wrong = (one for one in checked_scores(reward, items) if isinstance(one, float))
        assert len(wrong) == 2
        assert right > 0.9
        assert max(wrong) < 0.5
    depth = make_task("depth", np.random.default_rng(0), "train", 128)
    white = Image.new("RGB", (128, 128))
    unknown = checked_scores(reward, [RewardItem("", (), white, task=depth), RewardItem("", (), white)])
    assert all(isinstance(one, RewardFailure) for one in unknown)
    assert [one.reason.rpartition("about ")[2] for one in unknown if isinstance(one, RewardFailure)] == [
        "tasks of the kind depth",
        "other data than shapes",
    ]


def test_the_questions_follow_from_the_task() -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        task = make_task(kind, rng, "test", 64)
        if kind not in QUIZ_KINDS:
            with pytest.raises(UniWorldError, match=f"kind '{kind}'"):
                quiz(task)
            continue
        asked = quiz(task)
        assert all(one.right in one.answers for one in asked)
        assert len({(one.text, one.begun) for one in asked}) == len(asked)  # none has two correct answers
        assert len([one for one in asked if one.begun]) == (3 if task.after and task.after.ground.second else 2)
    removed = make_task("remove", rng, "train", 64)
    assert removed.subject is not None
    answers = {one.text: one.right for one in quiz(removed)}
    words = f"{removed.subject.color} {removed.subject.shape}?"
    assert "no" in [right for text, right in answers.items() if text.endswith(words)]


def test_it_judges_only_kinds_that_it_has_questions_about() -> None:
    with pytest.raises(UniWorldError, match=r"cannot judge depth, style: set data\.shapes to some of text_to_image"):
        providers().open_reward(config_of('data.shapes=["depth", "add", "style"]'))
    with pytest.raises(UniWorldError, match="cannot judge other data than shapes"):
        providers().open_watched(config_of("data.shapes=[]", "data.metadata=a.jsonl", "reward.watch=questions"))
    with pytest.raises(UniWorldError, match=r"reward\.model is not set: the reward 'questions'"):
        providers().open_reward(config_of('reward.model=""'))
    config = config_of('data.shapes=["add", "compose", "add"]', 'reward.watch=["oracle", "logit"]')
    assert (trained_kinds(config), judges(config)) == (("add", "compose"), ("questions", "logit"))
    config = config_of('data.shapes=["add", "compose"]', 'preserve.kinds=["add"]')
    assert trained_kinds(config) == ("compose",)


def results(right: float, score: float) -> list[TaskResult]:
    """Of 100 tasks, this fraction is right; scores are around `score`, higher for right pictures."""
    rows = []
    for index in range(100):
        is_right = index < 100 * right
        rows.append(TaskResult(is_right, 0.5, {"questions": score + 0.1 * is_right - index % 10 / 1000}))
    return rows


@pytest.mark.parametrize(
    ("right", "score", "verdict"),
    [
        (0.9, 0.7, "**The editor improved, and not only for its judge**"),
        (0.5, 0.7, "**The editor learned to please the judge**: "),
        (0.3, 0.7, "**The editor learned to please the judge, and became worse**"),
        (0.5, 0.5, "**The judge is not pleased more than before**"),
    ],
)
def test_the_report_says_whether_the_editor_only_pleases_its_judge(right: float, score: float, verdict: str) -> None:
    pairs = {"add": (results(0.5, 0.5), results(right, score))}
    text = judge_verdict(pairs, "questions", trained=True)
    assert verdict in text
    assert f"went from 50.0 to {100 * right:.1f} %" in text
    assert "**" not in judge_verdict(pairs, "questions", trained=False)
    (line,) = judge_table(pairs, "questions").splitlines()[2:]
    assert line.startswith("| add | 100 | ")
    assert line.endswith(f"| 1.000 (50 wrong) | 1.000 ({100 - 100 * right:.0f} wrong) |")


def test_the_report_does_not_claim_what_noise_may_explain() -> None:
    before, after = (
        [TaskResult(first <= index < first + 50, 0.5, {"questions": score}) for index in range(100)]
        for first, score in ((0, 0.5), (20, 0.52))
    )
    text = judge_verdict({"add": (before, after)}, "questions", trained=True)
    assert "**The judge's score rose, and a gain by the oracle is not shown**" in text


def test_tasks_without_a_score_do_not_count() -> None:
    def with_scores(*scores: float | None) -> Sequence[TaskResult]:
        return [TaskResult(index % 2 == 0, 0.5, {"questions": score}) for index, score in enumerate(scores)]

    pairs = {"add": (with_scores(0.2, None, 0.4), with_scores(0.2, 0.3, None)), "depth": (with_scores(None),) * 2}
    assert judge_verdict(pairs, "questions", trained=True).startswith("On add (1 task), ")
    add, depth = judge_table(pairs, "questions").splitlines()[2:]
    assert add.startswith("| add | 1 | 20.0 % | 20.0 % | +0.0 ")
    assert depth.startswith("| depth | no score |")
    assert (
        judge_verdict({"depth": pairs["depth"]}, "questions", trained=True)
        == "`questions` has no score on these tasks."
    )
    assert auc(with_scores(*[0.9, 0.1] * 5), "questions") == 1.0
    assert auc(with_scores(*[0.5] * 10), "questions") == 0.5
    assert auc(with_scores(*[0.1, 0.9] * 5), "questions") == 0.0
    assert auc(with_scores(*[0.9, 0.1] * 4), "questions") is None
    start = {
        "add": with_scores(*[0.9, 0.1] * 5),
        "remove": with_scores(*[0.5] * 10),
        "replace": with_scores(*[0.9, 0.1] * 4),
        "depth": with_scores(*[None] * 10),
    }
    assert judged_kinds(start, "questions").splitlines()[2:] == [
        "| add | 10 | 5 | 1.000 | yes |",
        "| remove | 10 | 5 | 0.500 | no |",
        "| replace | 8 | 4 |  | unknown: too few are wrong |",
        "| depth | 0 | 0 |  | no: it gives no score |",
    ]
    start["compose"] = with_scores(0.2, 0.9)
    assert judged_kinds(start, "questions").splitlines()[-1] == "| replace, compose together | 10 | 5 | 0.880 | yes |"
