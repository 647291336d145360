"""`uniworld eval`: examine a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cli_command import DONE, Command


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="nano", metavar="DIR", help="a checkpoint folder, or a shipped one (nano)"
    )
    parser.add_argument("--flux", type=Path, metavar="DIR", help="its FLUX folder, unless it is a shipped one")
    parser.add_argument("--siglip", type=Path, metavar="DIR", help="its SigLIP folder, unless it is a shipped one")
    parser.add_argument("--count", type=int, default=40, metavar="N", help="tasks of each kind (40)")
    parser.add_argument("--kinds", metavar="A,B", help="kinds of tasks (all)")
    parser.add_argument("--steps", type=int, default=28, metavar="N", help="sampling steps (28)")
    parser.add_argument("--guidance", type=float, default=3.5, metavar="X", help="FLUX's embedded guidance (3.5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the tasks and the paintings (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write the paintings there as one PNG")


def _shapes(arguments: argparse.Namespace) -> int:
    from .shapes.exam import examine

    print(examine(arguments.checkpoint))
    return DONE


EVAL_COMMANDS: dict[tuple[str, ...], Command] = {
    ("eval", "shapes"): Command("examine a model on held-out shapes, with an exact oracle", _add_shapes, _shapes),
}
