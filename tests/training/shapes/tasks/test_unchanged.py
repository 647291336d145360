"""The tasks that models were trained on never change, to the last pixel; new kinds are added to them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from uniworld.training.shapes.tasks.tasks import KINDS, ShapesTask, make_task

# First eight digits of the SHA-256 of words and of pictures, for tasks of seeds 0 to 2 in both splits.
STORED = {
    "text_to_image": ("ab0b9c46", "c0a094af"),
    "add": ("d21446e3", "711d8dff"),
    "remove": ("83926553", "043dec8a"),
    "replace": ("e209aacb", "00ad4f5d"),
    "recolour": ("17c327f1", "6465ec3f"),
    "background": ("8a175125", "a30e1f0f"),
    "extract": ("755b0e44", "1a14bfa9"),
    "style": ("6c4ec1fb", "0b464f4e"),
    "compose": ("ea9b5651", "ccfc0502"),
    "reconstruct": ("ea86becb", "8104efd3"),
    "edge": ("b5f55386", "cd9f6910"),
    "depth": ("4d5cb72f", "08574f1c"),
    "segmentation": ("f5739ef7", "b18b22a9"),
    "detection": ("a2b01767", "c6b72cfc"),
    "question": ("863b2e4e", "5ad91599"),
    "hed": ("48e17db7", "eff2b041"),
    "mlsd": ("ee2698d8", "4d1829d9"),
    "normal": ("f757f797", "e07870db"),
    "sketch": ("20c78f16", "70a5beb5"),
    "openpose": ("349fee99", "9d32d288"),
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
