"""The structure of the package: import order between rooms, cost of importing it, and rules for libraries."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from uniworld.uniworld_core.families.table import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
SHIM = "import importlib.util as i, sys\n" + (
    "s = i.spec_from_file_location('uniworld', {root!r} + '/__init__.py', submodule_search_locations=[{root!r}])\n"
    "m = sys.modules['uniworld'] = i.module_from_spec(s)\n"
)
# Top-level names that belong to ComfyUI.
COMFY = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "comfy_config",
    "folder_paths",
    "execution",
    "server",
    "latent_preview",
    "node_helpers",
    "app",
    "api_server",
    "cuda_malloc",
}
OWN = {"uniworld", "uniworld_core", "nodes", "training", "headless"}
ROOMS = ("uniworld_core", "nodes/headless", "nodes", "training", "")

# Gives workflows the tasks of `eval shapes`.
EXAMINATION = "nodes/headless/bench/shapes.py"

# The rooms that each room may import.
ALLOWED = {
    "uniworld_core": {"uniworld_core"},
    "nodes": {"nodes", "uniworld_core"},
    "nodes/headless": {"nodes/headless", "nodes", "uniworld_core", ""},
    "training": {"training", "uniworld_core", ""},
    "": {"", "nodes", "nodes/headless", "training", "uniworld_core"},
}


# The order of rooms within a package: each may import itself and the listed ones. A file that is in no room counts as a
# room, and the package's own __init__ may import everything.
_BASE = {"errors", "files", "images", "json_text"}
INNER = {
    "uniworld_core": {
        "errors": set(),
        "files": {"errors"},
        "json_text": {"errors"},
        "images": {"errors", "files"},
        "loading": _BASE,
        "prompts": _BASE | {"loading"},
        "sampling": _BASE | {"loading"},
        "backbones": _BASE | {"loading", "prompts", "sampling"},
        "families": _BASE | {"loading", "prompts", "sampling", "backbones"},
        "lora": _BASE | {"loading", "sampling", "backbones"},
        "editing": _BASE,
        "perception": _BASE | {"editing", "prompts"},
        "model": _BASE | {"loading", "prompts", "sampling", "backbones", "families", "lora"},
    },
    "nodes/headless": {
        "problems": set(),
        "bootstrap": set(),
        "storage": {"problems"},
        "bench": {"problems", "registry", "workflow"},
        "builtin": {"problems", "storage"},
        "registry": {"problems", "builtin"},
        "workflow": {"problems", "storage", "registry"},
        "check": {"problems", "registry"},
        "run": {"problems", "storage", "registry", "check"},
        "chat": {"problems", "storage", "run"},
        "batch": {"problems", "storage", "registry", "workflow", "check", "run"},
        "serve": {"problems", "storage", "registry", "workflow", "check", "run"},
        "remote": {"problems", "storage", "registry", "workflow", "check", "run", "batch", "serve"},
        "commands": {"storage", "registry", "workflow", "check", "run", "remote"},
        "cli": {"storage", "registry", "workflow", "run", "batch", "bench", "chat", "commands", "serve", "remote"},
    },
    "nodes/headless/bench": {
        # Pure functions.
        "scoring": set(),
        "judging": {"scoring"},
        "items": {"judging", "scoring"},
        "damaged": set(),
        "download": {"damaged"},
        "shapes": {"items", "judging", "scoring"},
        "suites": {"damaged", "download", "items", "judging", "scoring", "shapes"},
        "statistics": {"items"},
        "batch_records": set(),
        "plan": {"items", "suites"},
        "run_folder": {"batch_records", "damaged", "items", "judging", "plan"},
        # Only these three know workflows.
        "generate": {"batch_records", "items", "plan", "run_folder"},
        "conversation": set(),
        "turns": {"conversation", "generate", "items", "plan", "run_folder", "suites"},
        "judge_step": {"items", "judging", "scoring", "plan", "run_folder"},
        "score_step": {"items", "judge_step", "judging", "scoring", "plan", "run_folder", "statistics"},
        "report": {"items", "plan", "run_folder", "score_step", "statistics"},
        "judges": {"items", "judging", "plan", "run_folder"},
        "compare": {"items", "judge_step", "judging", "plan", "run_folder", "score_step", "statistics"},
        "arguments": {"judges", "scoring", "suites"},
        "steps": {
            *(
                "generate",
                "judge_step",
                "judges",
                "judging",
                "plan",
                "report",
                "run_folder",
                "score_step",
                "scoring",
                "turns",
            ),
        },
        "command": {"arguments", "compare", "items", "judges", "plan", "run_folder", "steps", "suites", "report"},
    },
    "nodes/headless/serve": {
        "config": set(),
        "machine": set(),
        "metrics": {"machine"},
        "temp_folder": {"config"},
        "queue": set(),
        "completions": set(),
        "content": set(),
        "server": {"config", "content", "metrics", "queue"},
        "http": {"config", "queue", "server"},
        "routes": {"completions", "content", "http", "machine", "metrics", "queue", "server"},
        "app": {"config", "content", "http", "metrics", "queue", "routes", "server"},
        "command": {"app", "config", "http", "temp_folder"},
    },
    "training": {
        "files": set(),
        "objective": set(),
        "config": {"objective"},
        "data": {"config", "files", "objective"},
        "engine": {"config", "files", "objective"},
        "run": {"config", "data", "engine", "files", "objective"},
        "publish": {"config", "engine", "files", "objective", "run"},
        "editr1": {"config", "data", "engine", "files", "objective", "publish", "run"},
        "shapes": {"config", "data", "editr1", "engine", "files", "objective", "publish", "run"},
        "cli": {"config", "data", "editr1", "engine", "files", "objective", "publish", "run", "shapes"},
    },
    "training/shapes": {
        "world": set(),
        "tasks": {"world"},
        "judge": {"tasks", "world"},
        "exam": {"judge", "tasks", "world"},
        "standins": {"tasks", "world"},
        "nano": {"exam", "standins", "tasks", "world"},
        "claims": {"exam", "judge", "nano", "standins", "tasks"},
        "editr1": {"exam", "judge", "tasks", "world"},
    },
    "nodes": {
        "declare": set(),
        "renamed": set(),
        "host": {"renamed"},
        "pack": {"declare", "host", "renamed"},
        "headless": {"declare", "host", "pack", "renamed"},
    },
}


def room_of(path: str) -> str:
    """Return the room of a path relative to the root."""
    return next(room for room in ROOMS if not room or path == room or path.startswith(f"{room}/"))


def sources() -> list[Path]:
    folders = [ROOT / name for name in ("uniworld_core", "nodes", "training") if (ROOT / name).is_dir()]
    return [*sorted(ROOT.glob("*.py")), *(file for folder in folders for file in sorted(folder.rglob("*.py")))]


SOURCES = {str(file.relative_to(ROOT).as_posix()): file for file in sources()}


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


@cache
def nodes_of(name: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree_of(name)))


def absolute_imports(name: str) -> Iterator[str]:
    for node in nodes_of(name):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def relative_imports(name: str) -> Iterator[str]:
    """Yield the paths that a file imports relatively; ".." for imports from outside the package."""
    for node in nodes_of(name):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from paths_of(name, node)


def paths_of(name: str, node: ast.ImportFrom) -> Iterator[str]:
    base = Path(name).parent
    if node.level - 1 > len(base.parts):
        yield ".."
        return
    for _ in range(node.level - 1):
        base = base.parent
    base = base.joinpath(*(node.module or "").split(".")) if node.module else base
    for alias in node.names:
        inner = base / alias.name
        is_module = (ROOT / inner).is_dir() or (ROOT / inner).with_suffix(".py").is_file()
        yield (inner if is_module else base).as_posix().removeprefix(".").lstrip("/")


def inner_room(package: str, path: str) -> str | None:
    """Return the room of a path within a package; None for the package itself and for paths outside."""
    file = path.removesuffix(".py")
    inner = file.removeprefix(f"{package}/")
    return inner.partition("/")[0].removesuffix("__init__") or None if inner != file else None


def imports_in_use(name: str, in_functions: bool = True) -> set[str]:
    """Return the paths that a file imports relatively, without those for type checking only.

    Args:
        in_functions: include imports inside functions.
    """

    def of(body: list[ast.stmt]) -> Iterator[ast.ImportFrom]:
        for node in body:
            if isinstance(node, ast.ImportFrom) and node.level:
                yield node
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from of(node.orelse)
            elif in_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for field in ("body", "orelse", "finalbody"):
                    yield from of(getattr(node, field, None) or [])
                for handler in getattr(node, "handlers", []):
                    yield from of(handler.body)

    return {path for node in of(tree_of(name).body) for path in paths_of(name, node)}


def imports_at_once(name: str) -> set[str]:
    """Return the files that are imported together with a file: no imports in functions or for type checking."""
    wanted = imports_in_use(name, in_functions=False)
    return {file for path in wanted for file in (f"{path}.py", f"{path}/__init__.py") if file in SOURCES} - {name}


def calls(name: str) -> set[str]:
    """Return the names of the functions that a file calls."""
    return {node.func.id for node in nodes_of(name) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def test_rooms_are_found() -> None:
    assert {room_of(name) for name in SOURCES} >= {"uniworld_core", "nodes", "nodes/headless", ""}
    assert "uniworld_core/editing/masks.py" in set(relative_imports("nodes/pack/masks.py")) | {
        f"{path}.py" for path in relative_imports("nodes/pack/masks.py")
    }
    assert room_of("nodes/host") == "nodes"


def test_a_room_imports_only_allowed_rooms() -> None:
    wrong = [
        f"{name} imports {path}"
        for name in SOURCES
        for path in relative_imports(name)
        if ".." in path or room_of(path) not in ALLOWED[room_of(name)]
        if not (name == EXAMINATION and path.startswith("training/shapes/"))
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", INNER)
def test_rooms_within_a_package_are_the_known_ones(package: str) -> None:
    found = {inner_room(package, name) for name in SOURCES} - {None}
    assert found <= set(INNER[package]), "add the new room to INNER"
    assert found == set(INNER[package]), "remove the deleted room from INNER"


@pytest.mark.parametrize("package", INNER)
def test_imports_within_a_package_go_one_way(package: str) -> None:
    wrong = []
    for name in SOURCES:
        room = inner_room(package, name)
        if room is None:
            continue
        allowed = {None, room, *INNER[package][room]}
        wrong += [
            f"{name} imports {path}: {package}/{room} may import {sorted(INNER[package][room])}"
            for path in relative_imports(name)
            if inner_room(package, path) not in allowed
        ]
    assert not wrong, wrong


# Default settings of a family, for widgets and arguments that need one default for all families.
DEFAULTS_OF_V1 = "uniworld_core/families/uniworld_v1/painting"


def test_families_are_accessed_through_the_table() -> None:
    # The native nodes read the files that `uniworld convert --to comfy` writes of this one family.
    # The nodes of UniPic have settings that no other family has.
    without = ("uniworld_core/families/", "nodes/pack/native/clip.py", "nodes/pack/unipic.py")
    allowed = {f"uniworld_core/families/{name}" for name in ("family", "placement", "table")} | {DEFAULTS_OF_V1}
    wrong = []
    for name in SOURCES:
        if room_of(name) == "training" or name.startswith(without):
            continue
        found = {path for path in imports_in_use(name) if path.startswith("uniworld_core/families/")} - allowed
        wrong += [f"{name} imports {path}: ask the family of the folder" for path in found]
        kinds = [node.value for node in nodes_of(name) if isinstance(node, ast.Constant) and node.value in FAMILIES]
        wrong += [f"{name} names {kind}: only the table knows the families" for kind in kinds]
    assert not wrong, wrong


def test_there_are_no_import_cycles() -> None:
    waiting = {name: imports_at_once(name) for name in SOURCES}
    assert waiting["uniworld_core/editing/masks.py"] >= {"uniworld_core/images/components.py"}
    while done := {name for name, needed in waiting.items() if not needed & set(waiting)}:
        waiting = {name: needed for name, needed in waiting.items() if name not in done}
    # Files that only lead to a cycle are not part of it.
    while leads := set(waiting) - set().union(*waiting.values(), set()):
        waiting = {name: needed for name, needed in waiting.items() if name not in leads}
    circles = {name: sorted(needed & set(waiting)) for name, needed in waiting.items()}
    assert not circles, f"import cycles: {circles}"


# __main__.py may run as a script, outside any package.
def test_imports_of_the_package_itself_are_relative() -> None:
    names = [name for name in SOURCES if name != "__main__.py"]
    wrong = [(name, module) for name in names for module in absolute_imports(name) if module.split(".")[0] in OWN]
    assert not wrong, wrong


def test_comfyui_is_imported_by_the_host_and_the_native_nodes_only() -> None:
    names = [name for name in SOURCES if not name.startswith(("nodes/host/comfy.py", "nodes/pack/native/"))]
    wrong = [(name, module) for name in names for module in absolute_imports(name) if module.split(".")[0] in COMFY]
    assert not wrong, wrong


def bare_value_errors(nodes: Iterable[ast.AST]) -> list[int]:
    """Return the lines that raise a plain ValueError or derive from it. User errors are UniWorldErrors."""
    found = []
    for node in nodes:
        raised = node.exc if isinstance(node, ast.Raise) else None
        named = [raised.func if isinstance(raised, ast.Call) else raised]
        if isinstance(node, ast.ClassDef) and node.name != "UniWorldError":
            named = node.bases
        if any(isinstance(one, ast.Name) and one.id == "ValueError" for one in named):
            found.append(node.lineno)
    return found


def test_plain_value_errors_are_found() -> None:
    source = "class A(ValueError): pass\nraise ValueError('x')\nraise ValueError\nraise\nclass UniWorldError(ValueError): pass"
    assert sorted(bare_value_errors(ast.walk(ast.parse(source)))) == [1, 2, 3]


def test_plain_value_errors_are_never_raised() -> None:
    wrong = [f"{name}:{line}" for name in SOURCES for line in bare_value_errors(nodes_of(name))]
    assert not wrong, f"raise UniWorldError for errors that users can fix: {wrong}"


# The command line may print and exit.
def test_library_never_prints_exits_or_asks() -> None:
    names = [name for name in SOURCES if room_of(name) not in ("", "nodes/headless", "training")]
    wrong = [name for name in names if calls(name) & {"print", "exit", "quit", "input", "breakpoint"}]
    wrong += [name for name in names if "sys.exit" in SOURCES[name].read_text(encoding="utf-8")]
    assert not wrong, wrong


def test_every_file_has_a_docstring() -> None:
    wrong = [name for name in SOURCES if not ast.get_docstring(tree_of(name))]
    assert not wrong, wrong


def top_level_classes(name: str) -> Iterator[str]:
    return (node.name for node in tree_of(name).body if isinstance(node, ast.ClassDef))


def test_a_class_name_means_one_thing() -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for name in SOURCES:
        for found in top_level_classes(name):
            files[found].append(name)
    assert files["UniWorldError"] == ["uniworld_core/errors.py"]
    twice = {found: where for found, where in files.items() if len(where) > 1}
    assert not twice, f"classes with the same name: {twice}"


# --- cost of importing -----------------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    program = SHIM.format(root=str(ROOT)) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stdout or done.stdout.lstrip().startswith("{"), done.stdout
    return done.stdout


def test_importing_the_package_imports_no_model_code_and_costs_under_a_second() -> None:
    # Processor time rather than wall-clock time, so that other load on the machine matters less.
    found = json.loads(
        run_python(
            "import json, time, torch\n"
            "before, had = time.process_time(), set(sys.modules)\n"
            "s.loader.exec_module(m)\n"
            "took = time.process_time() - before\n"
            "print(json.dumps({'took': took, 'new': sorted({name.split('.')[0] for name in set(sys.modules) - had})}))"
        )
    )
    heavy = {"transformers", "diffusers", "kornia", "safetensors", "torchvision", "aiohttp", "scipy", "cv2"}
    assert heavy.isdisjoint(found["new"])
    assert found["took"] < 1.0


def test_importing_the_package_does_not_even_import_torch() -> None:
    found = json.loads(
        run_python("import json\ns.loader.exec_module(m)\nprint(json.dumps({'torch': 'torch' in sys.modules}))")
    )
    assert found == {"torch": False}


def test_core_imports_lazily() -> None:
    found = json.loads(
        run_python(
            "import json\ns.loader.exec_module(m)\nimport uniworld.uniworld_core as core\n"
            "before = [name for name in ('torch', 'transformers', 'diffusers') if name in sys.modules]\n"
            "print(json.dumps({'before': before, 'names': all(hasattr(core, name) for name in core.__all__)}))"
        )
    )
    assert found == {"before": [], "names": True}


def test_no_room_becomes_a_top_level_module() -> None:
    found = json.loads(
        run_python(
            "import json, pkgutil, importlib\ns.loader.exec_module(m)\n"
            "for part in ('uniworld.nodes', 'uniworld.uniworld_core'):\n"
            "    package = importlib.import_module(part)\n"
            "    for module in pkgutil.walk_packages(package.__path__, part + '.'):\n"
            "        needs_comfyui = module.name.endswith(('.host.comfy', '.native.model', '.native.vae', '.native.clip'))\n"
            "        if not needs_comfyui and '.headless' not in module.name:\n"
            "            importlib.import_module(module.name)\n"
            "print(json.dumps({name: name in sys.modules for name in ('nodes', 'training', 'tests', 'uniworld_core')}))"
        )
    )
    assert not any(found.values())


def test_all_packages_are_installed_below_uniworld() -> None:
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["package-dir"] == {"uniworld": "."}
    assert all(name.split(".")[0] == "uniworld" for name in settings["packages"])
    with_code = {file.parent.relative_to(ROOT).as_posix() for file in SOURCES.values()} - {"."}
    expected = {"uniworld", *(f"uniworld.{folder.replace('/', '.')}" for folder in with_code)}
    assert set(settings["packages"]) == expected


def test_every_folder_of_code_is_a_package() -> None:
    for file in SOURCES.values():
        assert (file.parent / "__init__.py").is_file(), file


def test_tests_mirror_the_rooms() -> None:
    tests = [file.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")]
    mirrored = {file.parent for file in tests if file.parts[0] in ("uniworld_core", "nodes", "training")}
    assert Path("training/data") in mirrored
    missing = sorted(str(folder) for folder in mirrored if not (ROOT / folder / "__init__.py").is_file())
    assert not missing, f"tests/{missing} has no folder of this name in the product"
