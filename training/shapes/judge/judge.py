"""Judge a painted picture: is the instruction followed, and is everything else unchanged?

verdict = judge(task, painted)
verdict.right, verdict.reasons
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from ....uniworld_core.errors import UniWorldError
from ..tasks.tasks import ShapesTask
from ..world import draw
from ..world.scene import UNITS, Object, Scene
from .lines import judge_edges, judge_hed, judge_mlsd, judge_sketch
from .maps import judge_box, judge_depth, judge_segment
from .morphology import grow
from .normals import judge_normals
from .oracle import MIN_FIT, Found, FoundObject, Pixels, covered_by, find, pixels
from .pose import judge_pose
from .verdict import Verdict

# Maximum displacement of an unedited object, in units.
STAYS_WITHIN = 3
# Maximum fraction of the picture that is neither ground nor object: a few pixels of a soft edge.
MAX_UNEXPLAINED = 0.006

_MAP_JUDGES = {
    "edge": judge_edges,
    "depth": judge_depth,
    "hed": judge_hed,
    "mlsd": judge_mlsd,
    "normal": judge_normals,
    "sketch": judge_sketch,
    "openpose": judge_pose,
}

__all__ = ["Verdict", "judge", "judge_answer"]


def judge(task: ShapesTask, painted: Image.Image) -> Verdict:
    """Judge a painted picture by its task.

    Args:
        painted: a picture of any size; it is judged at 64x64.

    Raises:
        UniWorldError: the task is a question, whose answer is a text.
    """
    if task.kind == "question":
        raise UniWorldError("A question has no picture: check its answer with judge_answer.")
    picture_HW3 = pixels(painted)
    if task.kind in _MAP_JUDGES:
        return _MAP_JUDGES[task.kind](task.before[0], picture_HW3)
    if task.kind == "style":
        if task.detail == "outline":
            return judge_edges(task.before[0], 255 - picture_HW3)
        return _judge_scene(task, task.before[0], 255 - picture_HW3)
    if task.kind in ("segmentation", "detection"):
        return _judge_marks(task, picture_HW3)
    assert task.after is not None
    return _judge_scene(task, task.after, picture_HW3)


def judge_answer(task: ShapesTask, answer: str) -> bool:
    """Whether an answer is correct, ignoring case, surrounding spaces and a full stop."""
    return answer.strip().rstrip(".").strip().lower() == task.answer


def _judge_scene(task: ShapesTask, wanted: Scene, picture_HW3: Pixels) -> Verdict:
    """Judge a picture of a scene. Only the exact position of new objects may differ, which the prompt leaves open."""
    loose = wanted.objects if task.kind == "text_to_image" else ()
    if task.kind in ("add", "compose"):
        loose = tuple(thing for thing in wanted.objects if thing == task.result)
    staying = tuple(thing for thing in wanted.objects if task.before and thing in task.before[0].objects)
    verdict = compare(wanted, picture_HW3, loose, staying)
    return replace(verdict, psnr=untouched_psnr(task, picture_HW3))


def _judge_marks(task: ShapesTask, picture_HW3: Pixels) -> Verdict:
    """Judge a marked picture: the mark, and that the rest of the picture is unchanged."""
    assert task.subject is not None
    scene = task.before[0]
    found = (judge_segment if task.kind == "segmentation" else judge_box)(scene, task.subject, picture_HW3)
    source_HW3 = pixels(task.references[0])
    # The source is restored under the mark, so that the rest can be judged like any picture.
    restored_HW3 = np.where(grow(found.marked, 2)[..., None], source_HW3, picture_HW3)
    untouched_HW = ~grow(found.marked | found.wanted, 3)
    others = tuple(thing for thing in scene.objects if thing != task.subject)
    rest = compare(scene, restored_HW3, (), others)
    reasons = (*found.reasons, *rest.reasons)
    psnr = _psnr(picture_HW3, source_HW3, untouched_HW)
    return Verdict(not reasons, reasons, kept=rest.kept, psnr=psnr, iou=found.iou)


def compare(
    wanted: Scene,
    picture_HW3: Pixels,
    loose: tuple[Object, ...] = (),
    staying: tuple[Object, ...] = (),
) -> Verdict:
    """Compare a picture with the scene that it should show.

    Args:
        loose: objects that must be at their place, but not at an exact position.
        staying: objects whose found fraction is reported as `kept`.
    """
    found = find(picture_HW3)
    reasons = []
    if found.ground != wanted.ground:
        reasons.append(f"the ground is {_ground_words(found)}, not {' and '.join(wanted.ground.colors)}")
    free = list(found.objects)
    there = set()
    for thing in wanted.objects:
        match = next((seen for seen in free if _is(seen, thing, thing in loose)), None)
        if match is not None:
            free.remove(match)
            there.add(thing)
    missing = [thing for thing in wanted.objects if thing not in there]
    reasons += [f"no {thing.size} {thing.color} {thing.shape} at the {thing.place}" for thing in missing]
    reasons += [f"a {seen.words()} that should not be there" for seen in free]
    if found.unexplained > MAX_UNEXPLAINED:
        reasons.append(f"{100 * found.unexplained:.1f}% of the picture is neither ground nor object")
    order_right = _order_right(wanted, picture_HW3)
    if order_right is False:
        reasons.append("objects overlap in the wrong order")
    kept = sum(thing in there for thing in staying) / len(staying) if staying else None
    return Verdict(not reasons, tuple(reasons), kept=kept, order_right=order_right)


def _is(seen: FoundObject, thing: Object, loose: bool) -> bool:
    if (seen.shape, seen.color, seen.size) != (thing.shape, thing.color, thing.size) or seen.fit < MIN_FIT:
        return False
    if loose:
        return seen.place == thing.place
    x, y = thing.center
    return max(abs(seen.x - x), abs(seen.y - y)) <= STAYS_WITHIN


def _ground_words(found: Found) -> str:
    return " and ".join(color or "of no known color" for color in found.ground.colors or ("",))


def _order_right(scene: Scene, picture_HW3: Pixels) -> bool | None:
    """Whether all overlapping objects are painted in the correct order; None if no objects overlap.

    The picture must be closer to the scene than to the scene with two of these objects swapped.
    """
    scene = replace(scene, side=UNITS)
    masks = [draw.full_mask(thing, UNITS) for thing in scene.objects]
    crossing = [
        (below, above) for above in range(len(masks)) for below in range(above) if (masks[above] & masks[below]).any()
    ]
    if not crossing:
        return None
    error = _least_error(picture_HW3, draw.paint(scene))
    for below, above in crossing:
        objects = list(scene.objects)
        objects[below], objects[above] = objects[above], objects[below]
        if _least_error(picture_HW3, draw.paint(replace(scene, objects=tuple(objects)))) < error:
            return False
    return True


def _least_error(picture_HW3: Pixels, drawn_HW3: draw.Array) -> float:
    """Return the mean absolute difference of two pictures, minimized over shifts of up to `STAYS_WITHIN` pixels."""
    inner = slice(STAYS_WITHIN, -STAYS_WITHIN)
    shifts = range(-STAYS_WITHIN, STAYS_WITHIN + 1)
    drawn_hw3 = drawn_HW3[inner, inner].astype(np.float32)
    moved = (np.roll(picture_HW3, (down, right), (0, 1))[inner, inner] for down in shifts for right in shifts)
    return min(float(np.abs(shown_hw3 - drawn_hw3).mean()) for shown_hw3 in moved)


def untouched_psnr(task: ShapesTask, picture_HW3: Pixels) -> float | None:
    """Return the PSNR in dB over the area of the first reference that an edit must not change; None if there is none.

    A new object may be anywhere at its place, so its detected position is excluded.
    """
    if task.kind not in ("add", "remove", "replace", "recolour", "background", "compose", "reconstruct"):
        return None
    assert task.after is not None
    assert task.target is not None
    before_HW3, after_HW3 = pixels(task.references[0]), pixels(task.target)
    touched_HW = (before_HW3 != after_HW3).any(-1)
    if task.kind in ("add", "compose"):
        assert task.result is not None
        for seen in find(picture_HW3).objects:
            if _is(seen, task.result, loose=True):
                touched_HW |= grow(seen.mask | covered_by(seen))
    return _psnr(picture_HW3, after_HW3, ~grow(touched_HW, 2))


def _psnr(picture_HW3: Pixels, wanted_HW3: Pixels, where_HW: draw.Mask) -> float | None:
    if not where_HW.any():
        return None
    error = float(((picture_HW3 - wanted_HW3)[where_HW] ** 2).mean())
    return float(min(10 * np.log10(255**2 / max(error, 1e-9)), 99.0))
