"""What nano knows: the words that are said in the world of shapes, and how even its pictures are."""

from __future__ import annotations

import json
from pathlib import Path

from ....uniworld_core.prompts.scope import SCOPE_FILE, Scope, flat_share
from ...files import write_atomic
from ..exam.exam import exam_tasks
from ..standins.tokens import said
from ..tasks.tasks import KINDS
from ..world.scene import SIDE

_ABOUT = (
    f"drawings of shapes and stick figures in a few even colours at {SIDE}x{SIDE} pixels, and the words of its instructions "
    "about them"
)
_EACH = 12  # held-out tasks of each kind
_MARGIN = 0.8  # what is painted is less even than what is drawn


def world_scope() -> Scope:
    """The scope of a model of the world of shapes, from what is said in training and from held-out pictures."""
    everything = Scope(_ABOUT, frozenset(), 0.0)
    words = {word for text in said() for word in everything.unknown_words(text)}
    tasks = [task for kind in KINDS for task in exam_tasks(kind, _EACH)]
    shown = [picture for task in tasks for picture in (*task.references, task.target) if picture is not None]
    return Scope(_ABOUT, frozenset(words), round(_MARGIN * min(map(flat_share, shown)), 3))


def write_scope(scope: Scope, folder: Path) -> None:
    """Write it into a checkpoint's folder."""
    content = {"about": scope.about, "flat": scope.flat, "turns": scope.turns, "words": sorted(scope.words)}
    write_atomic(folder / SCOPE_FILE, (json.dumps(content) + "\n").encode())
