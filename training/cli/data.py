"""`uniworld data`: check training data, pack it into shards, cache the frozen parts' outputs, or generate shapes."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Protocol

from ...command_line import DONE, MAX_SEED, MISUSED, whole_number
from .command import Bars, Command, add_config, is_rank0


class CheckReport(Protocol):
    """What a check has found."""

    @property
    def problems(self) -> tuple[str, ...]: ...

    def to_json(self) -> dict[str, object]: ...

    def to_text(self) -> str: ...


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="a text file of image_root,annotations.json,need_weight lines, a folder of shards, or a .jsonl file of prompts for "
        "training with rewards",
    )
    parser.add_argument("--masks", action="store_true", help="also compute every edit mask (slow)")
    parser.add_argument(
        "--area",
        type=whole_number(1),
        metavar="N",
        help="area of the painted pictures in pixels (default: 1024x1024)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _check(arguments: argparse.Namespace) -> int:
    from ...uniworld_core.images.sizes import DEFAULT_AREA
    from ..data.check import check
    from ..editr1.prompts import check_prompts

    area = DEFAULT_AREA if arguments.area is None else arguments.area
    with Bars() as bars:
        progress = partial(bars, "checked", total=None)
        if arguments.data.suffix == ".jsonl":
            report: CheckReport = check_prompts(arguments.data, progress)
        else:
            report = check(arguments.data, arguments.masks, area, progress=progress)
    print(json.dumps(report.to_json(), indent=2) if arguments.json else report.to_text())
    return MISUSED if report.problems else DONE


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "list", type=Path, metavar="LIST", help="a text file of image_root,annotations.json,need_weight lines"
    )
    parser.add_argument("to", type=Path, metavar="TO", help="folder for the shards; finished shards in it are kept")
    parser.add_argument("--per-shard", type=whole_number(1), metavar="N", help="samples per shard (default: 1000)")


def _shards(arguments: argparse.Namespace) -> int:
    from ..data.published import PublishedSamples
    from ..data.shards import PER_SHARD, write_shards

    samples = PublishedSamples(arguments.list)
    per_shard = PER_SHARD if arguments.per_shard is None else arguments.per_shard
    with Bars() as bars:
        write_shards(samples, arguments.to, per_shard, progress=partial(bars, "shards"))
    print(arguments.to)
    return DONE


def _cache(arguments: argparse.Namespace) -> int:
    from ..config.file import load_config
    from ..run.fill_cache import fill_cache

    config = load_config(arguments.config, arguments.set)
    with Bars() as bars:
        cache = fill_cache(config, partial(bars, "cached"))
    for index in sorted(cache.bad):
        print(cache.bad[index])
    if is_rank0():
        print(cache.folder)
    return DONE


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("to", type=Path, metavar="TO", help="output folder; finished tasks in it are kept")
    parser.add_argument(
        "--count", type=whole_number(1), default=10_000, metavar="N", help="number of tasks (default: 10000)"
    )
    parser.add_argument(
        "--seed", type=whole_number(0, MAX_SEED), default=0, metavar="N", help="random seed (default: 0)"
    )
    parser.add_argument(
        "--side",
        type=whole_number(32, 4096),
        default=128,
        metavar="N",
        help="side of the pictures in pixels (default: 128)",
    )
    parser.add_argument("--kinds", metavar="A,B", help="kinds of tasks, separated by commas (default: all)")
    parser.add_argument("--test", action="store_true", help="generate the held-out test split, not the training split")


def _shapes(arguments: argparse.Namespace) -> int:
    from ..shapes.tasks.dataset import write_dataset

    kinds = arguments.kinds.split(",") if arguments.kinds else None
    with Bars() as bars:
        made = write_dataset(
            arguments.to,
            arguments.count,
            arguments.seed,
            "test" if arguments.test else "train",
            arguments.side,
            kinds,
            partial(bars, "drawn"),
        )
    print(made)
    return DONE


DATA_COMMANDS: dict[tuple[str, ...], Command] = {
    ("data", "check"): Command(
        "report all problems of training data", _add_check, _check, prints_result=lambda _: True
    ),
    ("data", "shards"): Command("pack training data into WebDataset shards", _add_shards, _shards),
    ("data", "cache"): Command("cache the outputs of the frozen parts for a configuration", add_config, _cache),
    ("data", "shapes"): Command("generate training data of the world of shapes", _add_shapes, _shapes),
}
