"""The options that change a workflow before it runs: --set, --image and --seed."""

from __future__ import annotations

import argparse
from pathlib import Path

from ....command_line import MAX_SEED, whole_number
from ....uniworld_core.errors import UniWorldError, shown
from ..registry.registry import Registry
from ..storage import folders
from ..workflow.file import Workflow, find_node, set_value
from ..workflow.prompt_choices import SEED_HELP


def add_value_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `apply_values`, and the folders that pictures are read from and written to."""
    parser.add_argument("--set", action="append", default=[], metavar="NODE.input=value", help="set an input's value")
    parser.add_argument(
        "--image", action="append", default=[], metavar="NODE=picture", help="set the picture that a node loads"
    )
    parser.add_argument("--seed", type=whole_number(0, MAX_SEED), metavar="N", help=SEED_HELP)
    parser.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="folder of input pictures")
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="folder for the results")


def apply_values(workflow: Workflow, registry: Registry, arguments: argparse.Namespace) -> list[str]:
    """Set the values of --set, --image and --seed, then resolve the random choices in the workflow's prompts.

    Returns:
        A note for each prompt that this changed.

    Raises:
        UniWorldError: an option is malformed, or names a node, an input or a file that does not exist.
    """
    for entry in arguments.set:
        target, equals, text = entry.partition("=")
        node, dot, name = target.rpartition(".")
        if not equals or not dot or not node:
            raise UniWorldError(f"--set {shown(entry)} is invalid. Write NODE.input=value, such as Sampler.steps=20.")
        set_value(workflow, registry, node, name, text)
    for entry in arguments.image:
        node, equals, path = entry.partition("=")
        if not equals or not node:
            raise UniWorldError(f"--image {shown(entry)} is invalid. Write NODE=picture, such as LoadImage=cat.jpg.")
        if not path:
            raise UniWorldError(
                f"--image {shown(entry)} has an empty path. Write NODE=picture, such as LoadImage=cat.jpg."
            )
        # The node is looked up first, so that a wrong node name is reported before a wrong path.
        node_id = find_node(workflow.prompt, node)
        set_value(workflow, registry, node_id, "image", folders.current().bind(Path(path)))
    return workflow.resolve_texts(registry, arguments.seed)
