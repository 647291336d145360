"""The documentation is correct: links, anchors, paths, commands, options, and numbers that can be computed."""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "training").rglob("*.md"),
        *(ROOT / "tests").rglob("*.md"),
        *(ROOT / "nodes").rglob("*.md"),
    ]
)
# Pages with checked commands and paths; the others are help pages of nodes and reports.
GUIDES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
each_guide = pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.relative_to(ROOT).as_posix())

# Top-level folders whose paths in the text must exist. Other folders are created by users: models, input, output, runs.
FOLDERS = "uniworld_core|nodes|training|tests|workflows|subgraphs|locales|docs|.ci"
# Options of pytest that the pages mention.
PYTEST = {"--collect-only", "--lf", "--version", "-n0", "-k", "-m", "-x", "-q"}
# Options of pip, hf, torchrun, git and ruff.
OTHERS = {"--local-dir", "--include", "--exclude", "--nproc-per-node", "--shutdown-timeout", "--check", "--no-deps"}
# Options of the published program (PKU-YuanGroup/UniWorld-V1, app.py).
OTHERS |= {"--nf4", "--offload"}


@cache
def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+?)\s*$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command line in code blocks and inline code. Continued lines are joined."""
    text = read(page).replace("\\\n", " ")
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)
    lines += re.findall(r"`([^`\n]+)`", without_blocks(text))
    for line in lines:
        line = re.sub(r"^(?:\w+=\S+ )*|^\.venv/bin/", "", line.strip())
        if re.match(r"(uniworld|python3 \.|python|torchrun) ", line):
            yield shlex.split(re.sub(r"\s#.*| > .*", "", line))


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def own_command(words: list[str]) -> list[str] | None:
    """Return the arguments of `uniworld`, however it is started; None for another program."""
    if words[:1] == ["uniworld"]:
        return words[1:]
    if words[:2] == ["python3", "."]:
        return words[2:]
    if words[0] == "torchrun" and "uniworld" in words:
        return words[words.index("uniworld") + 1 :]
    return None


def parse(argv: list[str]) -> None:
    """Parse a command line of this package as the command does. Raises if it is invalid."""
    from uniworld.__main__ import COMMANDS, TRAINING
    from uniworld.nodes.headless.cli import build_parser
    from uniworld.training.cli import main as cli

    assert argv[0] in COMMANDS, argv
    argv = [word for word in argv if word != "..."]
    if argv[-1] == "--help":
        argv = argv[:-1]
        if len(argv) == 1:
            return
    # Placeholders for numbers.
    argv = ["1" if word == "N" else word for word in argv]
    if argv[0] in TRAINING:
        if len(argv) > 1:
            words, found = cli._find(argv)
            cli._parser(words, found).parse_args(argv[len(words) :])
    else:
        build_parser().parse_args(argv)


# --- links and paths --------------------------------------------------------------------------------------------------


def test_the_pages_are_found() -> None:
    assert len(GUIDES) >= 9
    assert set(GUIDES) <= set(PAGES)


@each_page
def test_relative_links_and_their_anchors_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links {link}"


@each_page
def test_no_merge_left_its_markers(page: Path) -> None:
    assert not re.search(r"^(<{7} |>{7} )", read(page), flags=re.MULTILINE)


@each_guide
def test_mentioned_paths_exist(page: Path) -> None:
    pattern = rf"(?<![\w./-])(?:{FOLDERS})/[\w./*<> -]*"
    for code in re.findall(r"`([^`\n]+)`", without_blocks(read(page))):
        for path in re.findall(pattern, code.partition(" -")[0]):
            path = path.strip().rstrip(".")
            assert list(ROOT.glob(path.rstrip("/"))), f"{page.name} names {path}"


def test_paths_are_found() -> None:
    text = read(ROOT / "ARCHITECTURE.md")
    assert len(re.findall(rf"`(?:{FOLDERS})/", text)) > 60


def names_in(tree: Any) -> dict[str | None, ast.AST]:
    """Return the top-level definitions of a module or class, by name."""
    found: dict[str | None, ast.AST] = {}
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        found |= {getattr(target, "id", None): node for target in targets}
        found[getattr(node, "name", None)] = node
    return found


def test_functions_and_classes_in_the_architecture_are_in_the_given_files() -> None:
    text = read(ROOT / "ARCHITECTURE.md")
    named = re.findall(r"`([\w/]+\.py)`: `([\w.]+)`", text)
    named += [(path, name) for name, path in re.findall(r"`([\w.]+)` (?:of|in) `([\w/]+\.py)`", text)]
    assert len(named) >= 7
    for path, name in named:
        tree: Any = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        for part in name.split("."):
            assert part in names_in(tree), f"ARCHITECTURE.md names {name} in {path}"
            tree = names_in(tree)[part]


# --- commands ---------------------------------------------------------------------------------------------------------


@each_guide
def test_commands_are_valid(page: Path) -> None:
    for words in commands(page):
        argv = own_command(words)
        if argv is None or argv[:1] == ["test"] or not argv or argv[0] == "COMMAND":
            continue
        parse(argv)


@each_guide
def test_scripts_and_tests_in_commands_exist(page: Path) -> None:
    for words in commands(page):
        if words[0] == "python" or words[:3] == ["python3", ".", "test"]:
            for word in words[1:]:
                if re.match(rf"(?:{FOLDERS})/", word):
                    assert (ROOT / word).exists(), f"{page.name} runs {word}"


def test_commands_are_found() -> None:
    found = [argv for page in GUIDES for words in commands(page) if (argv := own_command(words))]
    assert {argv[0] for argv in found} >= {"run", "check", "nodes", "batch", "chat", "serve", "train", "data", "eval"}
    assert "test" in {argv[0] for argv in found}
    with pytest.raises(Exception, match="unrecognized"):
        parse(["run", "edit", "--frobnicate"])


def all_options() -> set[str]:
    from uniworld.nodes.headless.cli import build_parser
    from uniworld.training.cli import main as cli

    parsers: list[Any] = [build_parser(), *(cli._parser(words, found) for words, found in cli.COMMANDS.items())]
    for parser in parsers:  # grows: subcommands have subcommands of their own
        choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parsers += [one for named in choices for one in named.values()]
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


@each_guide
def test_options_in_the_text_exist(page: Path) -> None:
    scripts = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests" / "benchmarks").glob("*.py"))
    known = all_options() | PYTEST | OTHERS | set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', scripts))
    for code in re.findall(r"`([^`\n]+)`", without_blocks(read(page))):
        for option in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", code):
            assert option in known, f"{page.name} names {option}"


def test_markers_and_variables_in_contributing_exist() -> None:
    text = read(ROOT / "CONTRIBUTING.md")
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    for variable in re.findall(r"`(UNIWORLD_[A-Z0-9_]+)", text):
        assert f'"{variable}"' in sources, variable
    assert '"slow:' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_pre_commit_runs_what_ci_runs() -> None:
    def checks(text: str) -> set[str]:
        return set(re.findall(r"-m ((?:ruff|mypy) [^\n]*?)(?: \.)?$", text, flags=re.MULTILINE))

    in_ci = checks((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert len(in_ci) == 3
    assert checks((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")) == in_ci


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size() -> dict[str, int]:
    """Return {part: number of parameters} of the published checkpoint."""
    shapes = json.loads((ROOT / "tests" / "data" / "fullsize.json").read_text(encoding="utf-8"))["tensors"]
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        of_dit, of_tower = ".denoiser." in name, name.startswith("denoise_tower.")
        part = "DiT" if of_dit else "projectors" if of_tower else "Qwen2.5-VL"
        sizes[part] = sizes.get(part, 0) + math.prod(shape)
    return sizes


def test_memory_of_the_parts(full_size: dict[str, int]) -> None:
    text = read(ROOT / "docs" / "performance.md")
    for part, count in full_size.items():
        assert re.search(rf"^\| {re.escape(part)} \|.*\| {count * 2 / 1e9:.1f} \|$", text, flags=re.MULTILINE), part
    assert f"{full_size['DiT'] * 2 / 2**30:.1f} GiB" in text


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_memory_of_training(stage: str) -> None:
    from uniworld.training.config.file import load_config
    from uniworld.training.objective.trainable import part_of
    from uniworld.training.run.summary import estimate_memory

    names = {"denoise_tower.denoiser.": "dit.transformer.", "denoise_tower.": "projectors."}
    shapes = json.loads((ROOT / "tests" / "data" / "fullsize.json").read_text(encoding="utf-8"))["tensors"]
    settings = load_config(stage, ["model.dtype=bfloat16", "data.cache=cache", "run.parallel=fsdp"])
    trained = frozen = 0
    for name, shape in shapes.items():
        if "denoise_tower." not in name or "vae_projector" in name:
            continue
        inside = next(name.replace(old, new) for old, new in names.items() if old in name)
        trains = part_of(inside, settings.stage.parts) is not None
        trained, frozen = trained + trains * math.prod(shape), frozen + (not trains) * math.prod(shape)

    def gigabytes(processes: int) -> str:
        return f"{round(estimate_memory(settings, trained, frozen, 0, processes).total / 1e9)} GB"

    text = read(ROOT / "docs" / "training.md")
    if stage == "stage1":
        assert f"stage 1 takes {gigabytes(1)}" in text
    else:
        assert f"trains {trained / 1e9:.1f} billion parameters in {gigabytes(1)}, or in {gigabytes(8)} on each" in text


def test_the_table_of_files_for_comfyui_is_that_of_the_command() -> None:
    from uniworld.uniworld_core.families.uniworld_v1.comfy_files import LOADERS

    rows = re.findall(
        r"^\| `(\S+\.safetensors)` \| .* \| (.*) \|$", (ROOT / "docs" / "comfyui.md").read_text("utf-8"), re.M
    )
    assert [(file, loader.replace("`", "")) for file, loader in rows] == [
        (file.format(name="uniworld_v1"), loader) for file, loader in LOADERS.items()
    ]
