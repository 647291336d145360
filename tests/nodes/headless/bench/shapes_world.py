"""Benchmarks drawn by the world of shapes, in their published layouts, and judges and models that see with its oracle."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from uniworld.nodes.headless.bench.scoring.geneval import COLORS
from uniworld.training.shapes.exam.exam import exam_task
from uniworld.training.shapes.judge.judge import judge
from uniworld.training.shapes.judge.oracle import MIN_FIT, FoundObject, covered_by, find
from uniworld.training.shapes.tasks.prompts import caption
from uniworld.training.shapes.tasks.split import draw_triple
from uniworld.training.shapes.tasks.tasks import ShapesTask
from uniworld.training.shapes.world.draw import draw
from uniworld.training.shapes.world.scene import PLACES, SHAPES, SIDE, UNITS, Scene, random_scene, rgb

from .fake_judge import Answer, Request
from .folders import GEDIT_PROMPTS

Tasks = dict[str, ShapesTask]


def tasks_of(kinds: Sequence[str], count: int = 1) -> Tasks:
    """Return held-out tasks by number, taking the kinds in turn. The last one has another one's prompt: nano must fail."""
    tasks = {str(place): exam_task(kind, place // len(kinds)) for place, kind in enumerate([*kinds] * count)}
    last = list(tasks)[-1]
    return {**tasks, last: replace(tasks[last], prompt=exam_task(kinds[-1], count).prompt)}


# --- ImgEdit-Bench --------------------------------------------------------------------------------------------------


def imgedit_of_shapes(folder: Path, tasks: Tasks) -> None:
    """Write a folder like the unpacked Benchmark.tar with the tasks' references and prompts."""
    root = folder / "singleturn"
    (root / "shapes").mkdir(parents=True)
    items = {}
    for key, task in tasks.items():
        task.references[0].save(root / "shapes" / f"{key}.png")
        kind = "adjust" if task.kind == "recolour" else task.kind
        items[key] = {"id": f"shapes/{key}.png", "prompt": task.prompt, "edit_type": kind}
    (root / "singleturn.json").write_text(json.dumps(items))
    prompts = {item["edit_type"]: "<edit_prompt>" for item in items.values()}
    (root / "judge_prompt.json").write_text(json.dumps(prompts))


def imgedit_points(task: ShapesTask, result: Image.Image) -> tuple[int, int, int]:
    """Return the oracle's points for the three criteria, each 1 to 5."""
    verdict = judge(task, result)
    return (
        5 if verdict.right else 1,
        1 + round(4 * (verdict.kept or 0)),
        min(5, 1 + int((verdict.psnr or 0) // 8)),
    )


def imgedit_script(tasks: Tasks) -> Callable[[Request], Answer]:
    """Return the judge that the oracle is."""

    def script(request: Request) -> Answer:
        task = _asked(tasks, request.text, request.pictures[0])
        compliance, seamless, detail = imgedit_points(task, request.pictures[1])
        return Answer(f"Brief reasoning: x.\nCompliance: {compliance}\nSeamless: {seamless}\nDetail: {detail}")

    return script


def _asked(tasks: Tasks, text: str, source: Image.Image) -> ShapesTask:
    """Return the task whose prompt is in a question and whose source is the question's first picture."""
    shown = np.asarray(source.convert("RGB").resize((UNITS, UNITS), Image.Resampling.BOX), float)
    for task in tasks.values():
        wanted = task.references[0].resize((UNITS, UNITS), Image.Resampling.BOX)
        if task.prompt in text and np.abs(np.asarray(wanted, float) - shown).mean() < 6:
            return task
    raise AssertionError(f"No task has this prompt and picture: {text}")


# --- GEdit-Bench ----------------------------------------------------------------------------------------------------

GEDIT_GROUPS = {
    "add": "subject-add",
    "remove": "subject-remove",
    "replace": "subject-replace",
    "recolour": "color_alter",
    "background": "background_change",
    "style": "style_change",
}
# The judge's picture is larger than the one to edit, which nano paints at its own size.
JUDGED_SIDE = 2 * SIDE


def gedit_of_shapes(folder: Path, tasks: Tasks) -> Tasks:
    """Write GEdit-Bench's data set and judge prompts. Returns the tasks by the names of the English results."""
    import pyarrow
    from pyarrow import parquet

    (folder / "viescore").mkdir(parents=True)
    (folder / "viescore" / "vie_prompts.py").write_text(GEDIT_PROMPTS)
    rows, names = [], {}
    for key, task in tasks.items():
        group = GEDIT_GROUPS[task.kind]
        judged = draw(replace(task.before[0], side=JUDGED_SIDE))
        for language, text in (("en", task.prompt), ("cn", f"编辑 {key}。")):
            rows.append(
                {
                    "task_type": group,
                    "key": f"{int(key):032x}",
                    "instruction": text,
                    "instruction_language": language,
                    "input_image": {"bytes": _png(judged), "path": None},
                    "input_image_raw": {"bytes": _png(task.references[0]), "path": None},
                    "Intersection_exist": in_intersection(f"{int(key):x}"),
                }
            )
        names[f"fullset/{group}/en/{int(key):032x}"] = task
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return names


def in_intersection(key: str) -> bool:
    """Whether a task is in the intersection: some of each kind."""
    return int(key.rpartition("/")[2], 16) % 4 != 3


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def gedit_consistency(task: ShapesTask, shown: Image.Image) -> list[int]:
    """Return the oracle's two scores for following the instruction and for keeping the rest."""
    verdict = judge(task, shown)
    return [
        10 if verdict.right else 2 + len(verdict.reasons) % 3,
        round(10 * (1 if verdict.kept is None else verdict.kept)),
    ]


def gedit_quality(shown: Image.Image) -> list[int]:
    """Return the oracle's two scores for the objects' outlines and for the absence of other marks."""
    found = find(shown)
    worst = min((thing.fit for thing in found.objects), default=1.0)
    return [round(10 * worst), max(0, 10 - round(200 * found.unexplained))]


def gedit_script(tasks: Tasks) -> Callable[[Request], Answer]:
    """Return VIEScore's judge that the oracle is. Its replies have every form that VIEScore reads."""

    def script(request: Request) -> Answer:
        if "Editing instruction" not in request.text:
            return Answer(json.dumps({"score": gedit_quality(request.pictures[0]), "reasoning": "as seen"}))
        task = _asked(tasks, request.text, request.pictures[0])
        scores = gedit_consistency(task, request.pictures[1])
        text = json.dumps({"score": scores, "reasoning": f"The task was: {task.kind}."})
        forms = (text, f"```json\n{text}\n```", f"||V^=^V||{text}||V^=^V||", str(scores))
        return Answer(forms[len(task.prompt) % len(forms)])

    return script


def as_gedits_judge_sees(result: Path) -> Image.Image:
    """Return a result as the published scorer sends it: as large as the source, as JPEG."""
    file = io.BytesIO()
    Image.open(result).convert("RGB").resize((JUDGED_SIDE, JUDGED_SIDE)).save(file, "JPEG")
    return Image.open(file)


def known_gedit(names: Tasks, pictures: Path) -> dict[str, dict[str, float]]:
    """Return what the oracle says about the exported pictures: means of SC, PQ and O by group."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for name, task in names.items():
        shown = as_gedits_judge_sees(pictures / f"{name}.png")
        pair = float(min(gedit_consistency(task, shown))), float(min(gedit_quality(shown)))
        scores.setdefault(name.split("/")[1], []).append(pair)
    return {
        group: {
            "SC": sum(one for one, _ in pairs) / len(pairs),
            "PQ": sum(other for _, other in pairs) / len(pairs),
            "O": sum(math.sqrt(one * other) for one, other in pairs) / len(pairs),
        }
        for group, pairs in scores.items()
    }


# --- GenEval --------------------------------------------------------------------------------------------------------

_COUNTS = {"single_object": 1, "colors": 1, "two_object": 2, "position": 2, "color_attr": 2}
_DIRECTIONS = {(-1, 0): "left of", (1, 0): "right of", (0, -1): "above", (0, 1): "below"}


def geneval_of_shapes(folder: Path, tags: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Write GenEval's files with a prompt for each tag, which nano can paint. Returns the metadata.

    The last prompt is that of other objects: nano must fail.
    """
    rng = np.random.default_rng(seed)
    records = []
    for place, tag in enumerate(tags):
        scene = _scene(tag, rng)
        clauses = _clauses(tag, scene)
        while place == len(tags) - 1 and _clauses(tag, scene) == clauses:
            scene = _scene(tag, rng)
        records.append({"tag": tag, **clauses, "prompt": f"{caption(scene, rng).capitalize()}."})
    folder.mkdir(parents=True)
    (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    others = [f"thing {number}" for number in range(80 - len(SHAPES))]
    (folder / "object_names.txt").write_text("".join(f"{name}\n" for name in [*others, *SHAPES]))
    return records


def _scene(tag: str, rng: np.random.Generator) -> Scene:
    while True:
        count = _COUNTS.get(tag) or int(rng.integers(2, 4))
        scene = random_scene(rng, count, lambda some: draw_triple(some, "train"), SIDE)
        shapes = [thing.shape for thing in scene.objects]
        if len(set(shapes)) != (1 if tag == "counting" else count):
            continue
        if tag != "position" or _direction(scene) is not None:
            return scene


def _direction(scene: Scene) -> str | None:
    """Return where the second object is from the first, if they are in one row or column."""
    (row, column), (row_2, column_2) = (divmod(PLACES.index(thing.place), 3) for thing in scene.objects)
    return _DIRECTIONS.get((int(np.sign(column_2 - column)), int(np.sign(row_2 - row))))


def _clauses(tag: str, scene: Scene) -> dict[str, Any]:
    first = scene.objects[0].shape
    if tag == "counting":
        count = len(scene.objects)
        include, exclude = [{"class": first, "count": count}], [{"class": first, "count": count + 1}]
        return {"include": include, "exclude": exclude}
    clauses: list[dict[str, Any]] = [{"class": thing.shape, "count": 1} for thing in scene.objects]
    for clause, thing in zip(clauses, scene.objects):
        if tag in ("colors", "color_attr"):
            clause["color"] = thing.color
    if tag == "position":
        clauses[1]["position"] = [_direction(scene), 0]
    return {"include": clauses}


def oracle_accepts(metadata: Mapping[str, Any], result: Path) -> bool:
    """Whether the objects that the oracle finds in an exported picture are those of the prompt."""
    things: dict[str, list[FoundObject]] = {}
    for thing in _seen(Image.open(result)):
        things.setdefault(thing.shape, []).append(thing)
    include = metadata["include"]
    if metadata["tag"] == "counting":
        return len(things.get(include[0]["class"], [])) == include[0]["count"]
    if any(clause["class"] not in things for clause in include):
        return False
    best = [things[clause["class"]][0] for clause in include]
    if metadata["tag"] == "position":
        return include[1]["position"][0] in _seen_at(best[1], best[0])
    return all(thing.color == clause.get("color", thing.color) for clause, thing in zip(include, best))


def _seen(picture: Image.Image) -> list[FoundObject]:
    """Return the objects that the oracle recognizes, those with the best outlines first."""
    found = [thing for thing in find(picture).objects if thing.fit >= MIN_FIT]
    return sorted(found, key=lambda thing: -thing.fit)


def _seen_at(one: FoundObject, other: FoundObject) -> set[str]:
    """Return the directions from one object to another that GenEval's rule allows."""
    (x, y, wide, high), (x_2, y_2, wide_2, high_2) = (_frame(thing) for thing in (one, other))
    right, down = x - x_2, y - y_2
    least = math.hypot(right, down) / 2
    found = set()
    if abs(right) - (wide + wide_2) / 10 > least:
        found.add("right of" if right > 0 else "left of")
    if abs(down) - (high + high_2) / 10 > least:
        found.add("below" if down > 0 else "above")
    return found


def _frame(thing: FoundObject) -> tuple[float, float, float, float]:
    """Return the center and the sides of an object's bounding box."""
    rows, columns = np.nonzero(covered_by(thing))
    (top, bottom), (left, right) = ((float(at.min()), float(at.max()) + 1) for at in (rows, columns))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


class OracleDetector(torch.nn.Module):
    """Mask2Former's outputs for the objects that the oracle finds.

    Args:
        names: the detector's classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = list(names)
        self.config = SimpleNamespace(num_labels=len(names))
        # A detector that was trained has more queries than objects.
        self._queries = 20

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
        height, width = (int(pixel_mask[0].any(dim=axis).sum()) for axis in (1, 0))
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        shown = pixel_values[:, :, :height, :width] * std.view(3, 1, 1) + mean.view(3, 1, 1)
        pixels = F.interpolate(shown, (SIDE, SIDE), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        things = _seen(Image.fromarray(pixels.round().clamp(0, 255).byte().numpy()))
        classes = torch.full((1, self._queries, len(self._names) + 1), -12.0)
        classes[..., -1] = 12.0
        masks = torch.full((1, self._queries, UNITS, UNITS), -20.0)
        for place, thing in enumerate(things):
            classes[0, place, -1] = -12.0
            # Probabilities from 0.97 to 0.99, in the order of the fits.
            classes[0, place, self._names.index(thing.shape)] = -12.0 + math.log(
                79 / (1 / (0.97 + 0.02 * thing.fit) - 1)
            )
            masks[0, place][torch.from_numpy(covered_by(thing))] = 20.0
        side = (pixel_values.shape[-2] // 4, pixel_values.shape[-1] // 4)
        whole = F.interpolate(masks, side, mode="bilinear", align_corners=False)
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=whole)


_PALETTE = torch.tensor([rgb(color) for color in COLORS], dtype=torch.float32)


class OracleCLIP(torch.nn.Module):
    """CLIP's outputs for crops and texts: the number of the color, as a vector."""

    def vision_model(self, pixel_values: torch.Tensor) -> Any:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        shown = pixel_values * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        return SimpleNamespace(pooler_output=torch.stack([self._color(one * 255) for one in shown]))

    def _color(self, crop: torch.Tensor) -> torch.Tensor:
        pixels = crop.flatten(1).T
        inside = pixels[(pixels - 153).abs().max(dim=1).values > 12]
        nearest = (_PALETTE - inside.median(dim=0).values).norm(dim=1).argmin()
        return F.one_hot(nearest, len(COLORS)).float()

    def visual_projection(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def text_model(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(pooler_output=F.one_hot(input_ids[:, 0], len(COLORS)).float())

    def text_projection(self, features: torch.Tensor) -> torch.Tensor:
        return features


def color_tokens(texts: Sequence[str], **_: Any) -> Any:
    """Return the number of the color in each text, in place of CLIP's tokens."""
    from transformers import BatchEncoding

    numbers = [next(place for place, color in enumerate(COLORS) if f" {color}" in text) for text in texts]
    ids = torch.tensor(numbers)[:, None]
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def see_with_the_oracle(monkeypatch: Any, folder: Path) -> list[str]:
    """Put the oracle in place of the detector and CLIP. Returns the options of the command."""
    import transformers
    from uniworld.nodes.headless.bench.judging import detector

    for name in ("detector", "clip"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        (folder / name / "model.safetensors").write_bytes(b"")
    names = [f"thing {number}" for number in range(80 - len(SHAPES))] + list(SHAPES)
    for model, standin in (("Mask2FormerForUniversalSegmentation", OracleDetector(names)), ("CLIPModel", OracleCLIP())):
        monkeypatch.setattr(getattr(transformers, model), "from_pretrained", lambda *_, standin=standin, **__: standin)
    monkeypatch.setattr(detector, "clip_tokenizer", lambda _: color_tokens)
    return ["--judge", "detector", "--detector", str(folder / "detector"), "--clip", str(folder / "clip")]
