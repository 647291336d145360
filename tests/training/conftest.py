"""Fixtures: small data in the published format, configurations of the tiny model on it, and groups of processes."""

from __future__ import annotations

import json
import os
import socket
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from uniworld.training.config.file import load_config
from uniworld.training.config.settings import Config
from uniworld.training.run.metrics import read_lines

from ..forked import Forked

# Changes to the stage 2 preset: small enough for a test, and a learning rate that shows at once.
TINY = (
    "model.checkpoint=tiny",
    "model.dtype=float32",
    "data.area=4096",
    "run.device=cpu",
    "run.tensorboard=false",
    "optimizer.schedule=constant",
    "optimizer.warmup=0",
    "optimizer.lr=1e-3",
    "run.validate_every=0",
    "stage.checkpointing=false",
    "run.batch_size=2",
    "run.steps=4",
    "run.save_every=100",
    "run.seed=5",
)


def write_data(folder: Path, count: int = 8, side: int = 64) -> Path:
    """Write a list of `count` samples in the published format: edits of noise pictures, every third one text to image.

    The fifth sample is not square, so that there are two sizes.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    rng, annotations = np.random.default_rng(0), []
    for number in range(count):
        shape = (side, side * 3 // 2, 3) if number == 4 else (side, side, 3)
        names = [f"{number}.png"] if number % 3 == 2 else [f"{number}-before.png", f"{number}.png"]
        for name in names:
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(pictures / name)
        marks = "<image>" * (len(names) - 1)
        turns = [{"from": "human", "value": f"{marks}Paint it again."}, {"from": "gpt", "value": "<gen_image>"}]
        annotations.append({"image": names, "conversations": turns})
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    file = folder / "list.txt"
    file.write_text(f"{pictures},{folder / 'annotations.json'},true\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The list file of eight small samples; tests only read it."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny_config(tiny_data: Path) -> Callable[..., Config]:
    """`tiny_config("run.steps=2", ...)`: stage 2 on the tiny model and data, with these overrides."""
    return lambda *settings: load_config("stage2", [*TINY, f"data.list={tiny_data}", *settings])


@dataclass(frozen=True)
class Ended:
    """A process that has exited."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def processes(tmp_path: Path) -> Callable[..., list[Ended]]:
    """`processes(program, size)`: run a Python program in `size` connected processes, as torchrun does."""

    def run(program: str, size: int = 1, timeout: float = 300) -> list[Ended]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        started = [
            Forked(
                tmp_path,
                f"rank-{rank}",
                textwrap.dedent(program),
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(size)
        ]
        try:
            return [Ended(one.wait(timeout), *one.communicate()) for one in started]
        finally:
            for one in started:
                one.kill()

    return run


class _Products(TorchDispatchMode):
    """Records the dtypes of all matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.partition(".")[0]
        if name in ("mm", "addmm", "bmm", "baddbmm") or "convolution" in name or "attention" in name:
            self.seen.update(one.dtype for one in args if isinstance(one, torch.Tensor) and one.is_floating_point())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def product_dtypes() -> Iterator[set[torch.dtype]]:
    """The dtypes of all matrix products, convolutions and attentions computed so far in the test."""
    with _Products() as mode:
        yield mode.seen


@pytest.fixture
def losses() -> Callable[[Path], list[float]]:
    """`losses(folder)`: the losses of a run, step by step."""
    return lambda folder: [line["loss"] for line in read_lines(folder / "metrics.jsonl")]
