"""Prompts such as `a {red|blue} fox // a comment`, resolved as the editor does when it queues a workflow.

The rules are those of comfyui-frontend-package 1.58.1 (`Comfy.DynamicPrompts`): only the own text of a widget that is
declared with `dynamicPrompts` is resolved, not what a wire or a subgraph's node gives. The editor chooses at random; here
a seed does, so that a workflow gives the same picture each time.
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
    "decides between the {a|b} of prompts (default: the first seed of the workflow); pictures keep their own seeds"
)

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
_TOKEN = re.compile(r"\\.|[^\\{}|]+|.", re.DOTALL)
_ESCAPED = re.compile(r"\\([{}|])")
_MAX_DEPTH = 100


def is_dynamic(kind: object, options: Mapping[str, object]) -> bool:
    """Whether the editor resolves what stands in a widget of this type and these options."""
    return kind == "STRING" and options.get("dynamicPrompts") is True


def resolve(text: str, generator: random.Random, depth: int = 0) -> str:
    r"""The text with C-style comments left out, one option of each `{a|b}` taken, and `\{`, `\|` and `\}` unescaped.

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
    """The options of a choice whose opening brace has been read, up to its closing brace or the end."""
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
    """The texts of a workflow that are resolved when it runs.

    Attributes:
        places: nodes by their ids in API form, and inputs.
        seed: what decides; None for the first seed of the workflow.
    """

    places: set[tuple[str, str]] = field(default_factory=set)
    seed: int | None = None

    def copied(self) -> PromptChoices:
        return PromptChoices(set(self.places), self.seed)

    def resolve(self, prompt: dict[str, Any], registry: Registry) -> list[Resolved]:
        """Resolve the texts of a workflow in API form; gives those that have changed.

        Raises:
            UniWorldError: a text cannot be resolved; the sentence names node and input.
        """
        seed = first_seed(prompt, registry) if self.seed is None else self.seed
        changed = []
        for node_id, node in prompt.items():
            for name, text in node["inputs"].items():
                if (node_id, name) not in self.places or not isinstance(text, str):
                    continue
                try:
                    # Each place has its own dice, so that no prompt changes with another one.
                    chosen = resolve(text, random.Random(f"{seed} {node_id} {name}"))
                except UniWorldError as error:
                    raise UniWorldError(
                        f"{node_label(node_id, node['class_type'])}: input '{name}': {error}"
                    ) from error
                if chosen != text:
                    node["inputs"][name] = chosen
                    changed.append(Resolved(node_id, node["class_type"], name, chosen, seed))
        return changed


@dataclass(frozen=True)
class Resolved:
    """A text that was resolved to `text`."""

    node_id: str
    class_type: str
    name: str
    text: str
    seed: int

    @property
    def note(self) -> str:
        label = node_label(self.node_id, self.class_type)
        return f"{label}: '{self.name}' is {shown(self.text, 300)} (its comments and choices resolved by seed {self.seed})."


def first_seed(prompt: dict[str, Any], registry: Registry) -> int:
    """The value of the first seed widget of a workflow in API form, 0 if it has none."""
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
