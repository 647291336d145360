"""Nano's scope: the vocabulary of the world of shapes, and how flat its pictures are."""

from __future__ import annotations

import json
from pathlib import Path

from ....uniworld_core.prompts.scope import SCOPE_FILE, Scope, flat_share
from ...files import write_atomic
from ..exam.exam import exam_tasks
from ..standins.tokens import corpus
from ..tasks.tasks import KINDS
from ..world.scene import SIDE

_ABOUT = (
    f"drawings of shapes and stick figures in a few even colors at {SIDE}x{SIDE} pixels, and the words of its instructions "
    "about them"
)
_TASKS_PER_KIND = 12  # held-out tasks
_MARGIN = 0.8  # painted pictures have smaller flat areas than drawn ones


def world_scope() -> Scope:
    """Return the scope of the world of shapes, from the text of the training split and from held-out pictures."""
    empty = Scope(_ABOUT, frozenset(), 0.0)
    words = {word for text in corpus() for word in empty.unknown_words(text)}
    tasks = [task for kind in KINDS for task in exam_tasks(kind, _TASKS_PER_KIND)]
    shown = [picture for task in tasks for picture in (*task.references, task.target) if picture is not None]
    return Scope(_ABOUT, frozenset(words), round(_MARGIN * min(map(flat_share, shown)), 3))


def write_scope(scope: Scope, folder: Path) -> None:
    """Write a scope into a checkpoint's folder."""
    content = {"about": scope.about, "flat": scope.flat, "turns": scope.turns, "words": sorted(scope.words)}
    write_atomic(folder / SCOPE_FILE, (json.dumps(content) + "\n").encode())
