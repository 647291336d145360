"""`uniworld data`: look at training data, bring it into shards, run the frozen parts over it once, or draw some."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .cli_command import DONE, MISUSED, Command, add_config


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_list(parser)
    parser.add_argument("--masks", action="store_true", help="compute every edit mask as well (slow)")
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def _check(arguments: argparse.Namespace) -> int:
    from .data.check import check

    report = check(arguments.list, masks=arguments.masks)
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report.text())
    return MISUSED if report.problems else DONE


def _add_shards(parser: argparse.ArgumentParser) -> None:
    _add_list(parser)
    parser.add_argument("to", type=Path, metavar="TO", help="the folder of the shards; what is done in it is kept")


def _shards(arguments: argparse.Namespace) -> int:
    from .data.shards import write_shards

    write_shards(arguments.list, arguments.to)
    print(arguments.to)
    return DONE


def _add_cache(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def _cache(arguments: argparse.Namespace) -> int:
    from .config_file import load_config

    config = load_config(arguments.config, arguments.set)
    config.check_complete()
    if not config.data.cache:
        raise ValueError("data.cache is not set: say where to keep the cache (--set data.cache=FOLDER).")
    return DONE


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("to", type=Path, metavar="TO", help="the folder to draw into; what is done in it is kept")
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="so many tasks (10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawing (0)")
    parser.add_argument("--side", type=int, default=64, metavar="N", help="pixels of a picture's side (64)")
    parser.add_argument("--kinds", metavar="A,B", help="kinds of tasks (all)")


def _shapes(arguments: argparse.Namespace) -> int:
    from .shapes.dataset import write_dataset

    kinds = arguments.kinds.split(",") if arguments.kinds else None
    write_dataset(arguments.to, arguments.count, arguments.seed, side=arguments.side, kinds=kinds)
    print(arguments.to)
    return DONE


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "list", type=Path, metavar="LIST", help="a text file of image_root,annotations.json,need_weight"
    )


DATA_COMMANDS: dict[tuple[str, ...], Command] = {
    ("data", "check"): Command("report everything that is wrong with training data", _add_check, _check),
    ("data", "shards"): Command("bring training data into WebDataset shards", _add_shards, _shards),
    ("data", "cache"): Command("run the frozen parts over the data once", _add_cache, _cache),
    ("data", "shapes"): Command("draw training data of the world of shapes", _add_shapes, _shapes),
}
