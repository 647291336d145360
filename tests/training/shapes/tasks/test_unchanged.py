"""The tasks that models were trained on never change, to the last pixel; new kinds are added to them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from uniworld.training.shapes.tasks.tasks import KINDS, ShapesTask, make_task

# First eight digits of the SHA-256 of words and of pictures, for tasks of seeds 0 to 2 in both splits.
STORED = {
    "text_to_image": ("3452fa2e", "c0a094af"),
    "add": ("64b56e4d", "711d8dff"),
    "remove": ("405dfd1e", "043dec8a"),
    "replace": ("45b07d4b", "00ad4f5d"),
    "recolour": ("2d5c77d7", "6465ec3f"),
    "background": ("695d64f5", "a30e1f0f"),
    "extract": ("2e42b517", "1a14bfa9"),
    "style": ("194cf713", "0b464f4e"),
    "compose": ("941fdf17", "ccfc0502"),
    "reconstruct": ("b9d05f0f", "8104efd3"),
    "edge": ("96ab4889", "cd9f6910"),
    "depth": ("9c02d80c", "08574f1c"),
    "segmentation": ("1f193aef", "b18b22a9"),
    "detection": ("f34f53aa", "c6b72cfc"),
    "question": ("f72eba94", "5ad91599"),
    "hed": ("b66b9667", "eff2b041"),
    "mlsd": ("48eddca0", "4d1829d9"),
    "normal": ("6f56d39e", "e07870db"),
    "sketch": ("5a3ce57b", "70a5beb5"),
    "openpose": ("005fc3fa", "9d32d288"),
}


def words_of(task: ShapesTask) -> str:
    scenes = [*task.before, *([task.after] if task.after else [])]
    things = [(scene.objects, scene.ground, scene.side) for scene in scenes]
    return repr((task.prompt, task.answer, task.detail, task.subject, task.result, things))


def pictures_of(task: ShapesTask) -> bytes:
    return b"".join(picture.tobytes() for picture in (*task.references, task.target) if picture is not None)


def digests(kind: str) -> tuple[str, str]:
    some = [make_task(kind, np.random.default_rng(seed), split) for seed in range(3) for split in ("train", "test")]
    words = hashlib.sha256("\n".join(map(words_of, some)).encode())
    return words.hexdigest()[:8], hashlib.sha256(b"".join(map(pictures_of, some))).hexdigest()[:8]


@pytest.mark.parametrize("kind", STORED)
def test_a_seed_gives_the_same_words_and_pictures_as_ever(kind: str) -> None:
    assert digests(kind) == STORED[kind]


def test_every_kind_keeps_its_index_and_thereby_its_evaluation_seed() -> None:
    assert tuple(STORED) == KINDS
