"""Fixtures of the headless tests: a registry with the toy nodes, and a function that runs a workflow."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from uniworld.nodes import host
from uniworld.nodes.headless.check.validate import validate_prompt
from uniworld.nodes.headless.registry.registry import Registry, load_registry
from uniworld.nodes.headless.run.executor import Executor, RunResult
from uniworld.nodes.headless.storage import folders

HERE = Path(__file__).parent


def _load_toys() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toys", HERE / "toys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toys"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    return _load_toys()


@pytest.fixture(scope="session")
def registry(toys: ModuleType) -> Registry:
    registry = load_registry()
    registry.add(toys.NODE_CLASS_MAPPINGS, toys.NODE_DISPLAY_NAME_MAPPINGS, "toys")
    return registry


@pytest.fixture
def toy_pack(tmp_path: Path) -> Path:
    """The toy nodes as a pack folder, for the command line."""
    pack = tmp_path / "toy-pack"
    pack.mkdir()
    (pack / "__init__.py").write_text((HERE / "toys.py").read_text())
    return pack


@pytest.fixture(autouse=True)
def place(tmp_path: Path, toys: ModuleType) -> Iterator[folders.Folders]:
    """Folders for this test only; they and the installed host are removed after it."""
    before = folders.current()
    made = folders.Folders.under(tmp_path)
    made.input.mkdir()
    folders.install(made)
    toys.calls.clear()
    yield made
    folders.install(before)
    host.install(None)


@pytest.fixture
def plain() -> host.PlainHost:
    made = host.PlainHost()
    host.install(made)
    return made


@pytest.fixture
def executor(registry: Registry, plain: host.PlainHost) -> Executor:
    return Executor(registry, plain)


@pytest.fixture
def run(executor: Executor) -> Callable[..., RunResult]:
    """Check and run a workflow; events are appended to `events`."""

    def run(prompt: dict[str, Any], events: list[Any] | None = None, **more: Any) -> RunResult:
        checked = validate_prompt(prompt, executor.registry)
        assert not checked.problems, checked.sentences
        collect = (lambda name, data: events.append((name, data))) if events is not None else lambda name, data: None
        more.setdefault("on_event", collect)
        return executor.run(checked.prompt, checked.outputs, original=prompt, **more)

    return run
