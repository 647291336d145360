"""Prompts such as `a {red|blue} fox // a comment`, resolved as the editor does when it queues a workflow.

Source: `Comfy.DynamicPrompts` of comfyui-frontend-package 1.58.1. Only the text of a widget declared with
`dynamicPrompts` is resolved, not a text from a wire or from the node of a subgraph. The editor chooses at random. Here
a seed decides, so that a workflow is reproducible.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown
from ..problems import node_label
from ..registry.registry import Registry
from ..registry.schema import Schemas
from ..registry.widgets import SEED_NAMES

SEED_HELP = (
    "seed of the choices {a|b} in prompts (default: the first seed of the workflow); seeds of nodes do not change"
)

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
_TOKEN = re.compile(r"\\.|[^\\{}|]+|.", re.DOTALL)
_ESCAPED = re.compile(r"\\([{}|])")
_MAX_DEPTH = 100


def is_dynamic(kind: object, options: Mapping[str, object]) -> bool:
    """Return whether the editor resolves the text of a widget with this type and these options."""
    return kind == "STRING" and options.get("dynamicPrompts") is True


def resolve(text: str, generator: random.Random, depth: int = 0) -> str:
    r"""Remove C-style comments, choose one option of each `{a|b}`, and unescape `\{`, `\|` and `\}`.

    Raises:
        UniWorldError: choices are nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise UniWorldError(f"its choices are nested more than {_MAX_DEPTH} levels deep. Use fewer braces.")
    tokens = iter(_TOKEN.findall(_COMMENT.sub("", text)))
    parts = []
    for token in tokens:
        if token == "{":
            options = _options(tokens)
            parts.append(resolve(options[int(generator.random() * len(options))], generator, depth + 1))
        else:
            parts.append(token)
    return _ESCAPED.sub(r"\1", "".join(parts))


def _options(tokens: Iterator[str]) -> list[str]:
    """Read the options of a choice after its opening brace, up to its closing brace or the end of the text."""
    options: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        if token == "}" and depth == 0:
            break
        if token == "|" and depth == 0:
            options.append([])
            continue
        depth += {"{": 1, "}": -1}.get(token, 0)
        options[-1].append(token)
    return ["".join(option) for option in options]


@dataclass
class PromptChoices:
    """The texts of a workflow to resolve before it runs.

    Attributes:
        places: ids of nodes in API form, and names of their inputs.
        seed: the seed of the choices; None for the first seed of the workflow.
    """

    places: set[tuple[str, str]] = field(default_factory=set)
    seed: int | None = None

    def copied(self) -> PromptChoices:
        return PromptChoices(set(self.places), self.seed)

    def resolve(self, prompt: dict[str, Any], registry: Registry) -> list[ResolvedText]:
        """Resolve the texts of a workflow in API form in place, and return those that changed.

        Raises:
            UniWorldError: a text cannot be resolved; the message names node and input.
        """
        seed = first_seed(prompt, registry) if self.seed is None else self.seed
        changed = []
        for node_id, node in prompt.items():
            for name, text in node["inputs"].items():
                if (node_id, name) not in self.places or not isinstance(text, str):
                    continue
                try:
                    # Each place has its own generator, so that editing one prompt does not change another.
                    chosen = resolve(text, random.Random(f"{seed} {node_id} {name}"))
                except UniWorldError as error:
                    raise UniWorldError(
                        f"{node_label(node_id, node['class_type'])}: input '{name}': {error}"
                    ) from error
                if chosen != text:
                    node["inputs"][name] = chosen
                    changed.append(ResolvedText(node_id, node["class_type"], name, chosen, seed))
        return changed


@dataclass(frozen=True)
class ResolvedText:
    """A text after its comments and choices were resolved."""

    node_id: str
    class_type: str
    name: str
    text: str
    seed: int

    @property
    def note(self) -> str:
        label = node_label(self.node_id, self.class_type)
        return (
            f"{label}: '{self.name}' is {shown(self.text, 300)} (choices and comments resolved with seed {self.seed})."
        )


def first_seed(prompt: dict[str, Any], registry: Registry) -> int:
    """Return the value of the first seed widget of a workflow in API form; 0 if there is none."""
    schemas = Schemas(registry.classes)
    for node in prompt.values():
        if node.get("class_type") not in registry.classes:
            continue
        specs = schemas[node["class_type"]].inputs
        for name, value in node["inputs"].items():
            spec = specs.get(name)
            if spec is None or spec.type != "INT" or not isinstance(value, int) or isinstance(value, bool):
                continue
            if spec.options.get("control_after_generate", name in SEED_NAMES):
                return value
    return 0
