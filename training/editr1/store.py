"""The rollouts and scores of the running epoch on disk, so that a killed run continues within it.

rollouts/epoch-00000012/group-0003.safetensors   the painted latents of a group, float32
rollouts/epoch-00000012/group-0003.json          their scores
rollouts/epoch-00000012/group-0003.oracle.json   their scores by a reward that is only recorded, here the oracle
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ..files import read_saved, write_atomic
from .reward.protocol import RewardFailure, Score

ROLLOUTS = "rollouts"


class EpochStore:
    """The files of one epoch. What another policy or a run with other settings painted is not returned.

    Args:
        folder: the run's folder.
        epoch: number of the epoch, counted from 0.
        origin: fingerprint of the policy that paints, and of what else decides its pictures and their scores.
    """

    def __init__(self, folder: Path, epoch: int, origin: str) -> None:
        self._root = folder / ROLLOUTS
        self._folder, self._origin = self._root / f"epoch-{epoch:08d}", origin

    def latents(self, group: int, key: str) -> Tensor | None:
        """Return the latents of a group (k, C, ...), or None if it has not been painted by this policy with these settings.

        Args:
            key: name of the group's prompt.

        Raises:
            UniWorldError: the file is damaged.
        """
        file = self._file(group, "safetensors")

        def read(path: Path) -> Tensor | None:
            with safe_open(path, "pt") as kept:
                if kept.metadata() != {"origin": self._origin, "key": key}:
                    return None
                return kept.get_tensor("latents").clone()

        return read_saved(file, read) if file.is_file() else None

    def keep_latents(self, group: int, key: str, latents: Tensor) -> None:
        """Save the latents of a group; scores of earlier ones are removed. Raises UniWorldError if they cannot be written."""
        for file in self._folder.glob(self._file(group, "*json").name):
            file.unlink(missing_ok=True)
        content = save({"latents": latents.contiguous()}, {"origin": self._origin, "key": key})
        write_atomic(self._file(group, "safetensors"), content)

    def scores(self, group: int, watched: str = "") -> list[Score] | None:
        """Return the scores of a group, or None. Raises UniWorldError if the file is damaged.

        Args:
            watched: name of a reward that is only recorded; "" for the one that is trained on.
        """
        file = self._file(group, _kind(watched))
        return read_saved(file, _read_scores) if file.is_file() else None

    def keep_scores(self, group: int, scores: Sequence[Score], watched: str = "") -> None:
        """Save the scores of a group; see `scores`. Raises UniWorldError if they cannot be written."""
        rows = [{"failed": one.reason} if isinstance(one, RewardFailure) else one for one in scores]
        write_atomic(self._file(group, _kind(watched)), json.dumps(rows).encode())

    def forget_scores(self, group: int) -> None:
        """Remove the scores of a group, so that a resumed run asks for them again."""
        with suppress(OSError):
            self._file(group, "json").unlink(missing_ok=True)

    def remove_others(self) -> None:
        """Remove the files of all other epochs."""
        for folder in self._root.glob("epoch-*"):
            if folder != self._folder:
                shutil.rmtree(folder, ignore_errors=True)

    def _file(self, group: int, kind: str) -> Path:
        return self._folder / f"group-{group:04d}.{kind}"


def _kind(watched: str) -> str:
    return f"{watched}.json" if watched else "json"


def _read_scores(file: Path) -> list[Score]:
    rows = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise UniWorldError("it is not a list of scores")
    return [RewardFailure(row["failed"]) if isinstance(row, dict) else float(row) for row in rows]
