"""The parts of a release agree: version and changelog, requirements, and the registry's entry with its images."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# Dependencies of commands, which nodes do not need.
NOT_FOR_NODES = {"filelock"}
# Dependencies that ComfyUI installs itself.
COMFYUIS = {"torch", "numpy"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_newest_entry_of_the_changelog_is_the_version(project: dict[str, Any]) -> None:
    releases = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert releases[0] == project["project"]["version"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", release) for release in releases)


def test_requirements_for_comfyui_are_the_dependencies_without_its_own(project: dict[str, Any]) -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    installed = [line for line in lines if line and not line.startswith("#")]
    needed = project["project"]["dependencies"]
    left = [one for one in needed if re.split(r"[<>=]", one)[0] not in COMFYUIS | NOT_FOR_NODES]
    assert installed == left


def test_ci_runs_with_the_oldest_versions_that_the_dependencies_allow(project: dict[str, Any]) -> None:
    pinned = dict(
        re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci/oldest.txt").read_text(encoding="utf-8").lower(), re.M)
    )
    for dependency in project["project"]["dependencies"]:
        name, oldest = re.fullmatch(r"(\w+)>=([\d.]+)(?:,<\d+)?", dependency).groups()  # type: ignore[union-attr]
        if name != "torch":  # PyPI has no old builds of it without CUDA
            assert f"{pinned[name]}.".startswith(f"{oldest}."), dependency


def test_nodes_do_not_need_packages_that_comfyui_does_not_install() -> None:
    """Only locks need filelock, and neither nodes nor other parts of the core use locks."""
    rooms = [ROOT / "uniworld_core", ROOT / "nodes" / "pack", ROOT / "nodes" / "host"]
    sources = {file: file.read_text(encoding="utf-8") for room in rooms for file in room.rglob("*.py")}
    users = [file.name for file, text in sources.items() if "filelock import" in text]
    assert users == ["files.py"]
    takers = [
        file for file, text in sources.items() if re.search(r"import [^#\n]*\b(?:acquire_lock|check_locks)\b", text)
    ]
    assert takers == []


def test_the_registry_client_reads_the_entry(project: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parser = pytest.importorskip("comfy_cli.registry.config_parser", reason="the client is a test extra")
    monkeypatch.chdir(ROOT)
    entry = parser.extract_node_configuration("pyproject.toml")
    assert entry.project.name == "uniworld"
    assert entry.project.license.text == "Apache-2.0"
    assert entry.project.supported_os == ["OS Independent"]
    assert entry.project.supported_accelerators == ["GPU :: NVIDIA CUDA"]
    assert entry.project.supported_comfyui_version == ">=0.3.64"
    assert entry.tool_comfy.display_name == "UniWorld"


def test_urls_are_complete(project: dict[str, Any]) -> None:
    comfy = project["tool"]["comfy"]
    addresses = [*project["project"]["urls"].values(), *filter(None, (comfy["Icon"], comfy["Banner"]))]
    assert all(re.fullmatch(r"https://[\w.-]+\.[a-z]+/\S+", address) for address in addresses), addresses


@pytest.mark.parametrize(("name", "size"), [("icon.png", (400, 400)), ("banner.png", (1260, 540))])
def test_pictures_of_the_entry_match_those_of_the_script(name: str, size: tuple[int, int]) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from workflows.registry_pictures import IMAGES, pictures

    kept = np.asarray(Image.open(IMAGES / name).convert("RGB")).astype(int)
    assert kept.shape == (size[1], size[0], 3)
    # Anti-aliasing may differ slightly between versions of the libraries.
    assert np.abs(kept - np.asarray(pictures()[name]).astype(int)).mean() < 1
