"""The statements of the README are correct: its Python example runs, and its numbers, names and quoted errors match."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"


def side() -> int:
    """Return the image size of nano, in pixels."""
    sys.path.insert(0, str(ROOT / "tests"))
    from workflows.samples import SIDE

    return SIDE


def python_examples(page: str) -> list[str]:
    """Return the Python code in a page of the documentation."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_python_example_of_kontext_runs(kontext_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from uniworld.uniworld_core import UniWorld

    code = python_examples("api")[1]
    changes = {
        '"models/diffusers/FLUX.1-Kontext-dev"': repr(str(kontext_folder)),
        'dtype=torch.bfloat16, device="cuda"': "dtype=torch.float32",
        "guidance=2.5": "guidance=2.5, steps=1",
    }
    for written, here in changes.items():
        assert code.count(written) == 1, written
        code = code.replace(written, here)
    monkeypatch.chdir(ROOT / "workflows" / "input")
    names: dict[str, Any] = {"UniWorld": UniWorld, "torch": torch, "Image": Image}
    exec(code.replace("photo.jpg", "cat.jpg"), names)
    assert tuple(names["image"].shape) == (1, names["size"].height, names["size"].width, 3)


def test_the_python_example_of_unipic_runs(unipic: Path) -> None:
    torch = pytest.importorskip("torch")
    from uniworld.uniworld_core import UniWorld

    code = python_examples("api")[2]
    changes = {
        '"models/unipic/Skywork-UniPic-1.5B"': repr(str(unipic)),
        'dtype=torch.bfloat16, device="cuda"': "dtype=torch.float32",
        "1024, 1024": "64, 64, steps=1",
    }
    for written, here in changes.items():
        assert code.count(written) == 1, written
        code = code.replace(written, here)
    names: dict[str, Any] = {"UniWorld": UniWorld, "torch": torch}
    exec(code, names)
    assert tuple(names["image"].shape) == (1, 64, 64, 3)


def test_the_python_example_of_qwen_image_edit_runs(qwen_edit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from uniworld.uniworld_core import UniWorld

    code = python_examples("api")[3]
    changes = {
        '"models/diffusers/Qwen-Image-Edit-2509"': repr(str(qwen_edit)),
        'dtype=torch.bfloat16, device="cuda"': "dtype=torch.float32",
        "1024, 1024": "64, 64, steps=1",
    }
    for written, here in changes.items():
        assert code.count(written) == 1, written
        code = code.replace(written, here)
    monkeypatch.chdir(ROOT / "workflows" / "input")
    names: dict[str, Any] = {"UniWorld": UniWorld, "torch": torch, "Image": Image}
    exec(code, names)
    assert tuple(names["image"].shape) == (1, 64, 64, 3)


def test_the_python_example_runs_with_nano(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = python_examples("api")[0]
    code, opened = re.subn(
        r"from_pretrained\(\n.*?\n\)", 'from_pretrained("nano", dtype=torch.float32)', code, flags=re.DOTALL
    )
    assert opened == 1
    # The changes that the example states for nano: no T5, and another size.
    code = code.replace("1024", str(side())).replace('winter.", refs=refs)', 'winter.", refs=refs, use_t5=False)', 1)
    assert code.count("use_t5=False)") == 1
    monkeypatch.chdir(ROOT / "workflows" / "input")
    names: dict[str, Any] = {}
    exec(code.replace("photo.jpg", "shapes.png"), names)
    assert tuple(names["image"].shape) == (1, side(), side(), 3)
    assert "tensor([" in capsys.readouterr().out


def test_the_two_commands_are_near_the_top() -> None:
    top = TEXT.splitlines()[:30]
    assert "    python3 . run edit" in top
    assert "    python3 . test" in top


def test_the_readme_has_every_command_and_no_other() -> None:
    from uniworld.__main__ import CHECKOUT_COMMANDS, COMMANDS

    named = set(re.findall(r"(?:`|    )(?:uniworld|python3 \.) ([a-z]+)", TEXT))
    assert named == {*COMMANDS, *CHECKOUT_COMMANDS}


def test_every_node_is_listed_once() -> None:
    from uniworld import NODE_DISPLAY_NAME_MAPPINGS

    section = TEXT.partition("## In ComfyUI")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    listed = [re.sub("^UniWorld ", "", name.strip()) for row in rows for name in row.split(",")]
    assert {re.sub("^UniWorld ", "", name) for name in NODE_DISPLAY_NAME_MAPPINGS.values()} <= {*listed}
    assert len(listed) == len({*listed})


def test_versions_match_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    api = (DOCS / "api.md").read_text(encoding="utf-8")
    comfyui = re.findall(r'requires-comfyui = ">=([\d.]+)"', project)
    assert f"You need ComfyUI {comfyui[0]} or later" in TEXT
    oldest = dict(re.findall(r'"(transformers|diffusers|torch)>=([\d.]+)', project))
    assert f"transformers {oldest['transformers']} to 5.x" in api
    assert f"diffusers {oldest['diffusers']} or later and torch {oldest['torch']} or later" in api
    assert f"| transformers | {oldest['transformers']} to 5.x |" in TEXT


def test_every_workflow_in_its_page_is_shipped() -> None:
    from uniworld.nodes.headless.workflow.file import shipped_workflows
    from uniworld.uniworld_core.perception.tasks import TASKS

    text = (DOCS / "workflows.md").read_text(encoding="utf-8")
    shipped = shipped_workflows()
    assert {name for name in shipped if f"`{name}`" not in text} <= {f"perception_{task}" for task in TASKS}
    for task in TASKS:
        assert f"_{task}`" in text


def test_statements_about_nano() -> None:
    """tests/workflows checks that the edits themselves are right."""
    sys.path.insert(0, str(ROOT / "tests"))
    from uniworld.training.shapes.tasks.prompts import with_article
    from workflows.samples import SAMPLES

    edit = SAMPLES["edit"].task
    assert edit.subject is not None
    assert edit.result is not None
    old, new = (f"{thing.color} {thing.shape}" for thing in (edit.subject, edit.result))
    said = f"the {old} becomes {with_article(new)}"
    assert f"in `workflows/input/{SAMPLES['edit'].pictures[0]}`, {said}" in TEXT
    assert f'--set "UniWorld Condition.prompt={SAMPLES["edit_with_mask"].task.prompt}"' in TEXT
    files = (ROOT / "uniworld_core" / "shipped" / "nano").rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    assert f"a UniWorld of {round(size / 1e6)} MB" in TEXT


def test_messages_that_the_faq_quotes_exist() -> None:
    """Every part of a quoted message between dots is in a string of the sources."""
    sources = [file for room in ("uniworld_core", "nodes") for file in (ROOT / room).rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sources]
    # Implicitly joined strings are one constant, and the constant parts of an f-string are constants too.
    strings = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = "\n".join(one for one in strings if isinstance(one, str))
    faq = TEXT.partition("## FAQ")[2].partition("\n## ")[0]
    quoted = re.findall(r'"([^"]+)"', " ".join(re.findall(r"^\| (.*?) \|", faq, re.MULTILINE)))
    parts = [part.strip() for message in quoted for part in re.split(r"\.\.\.|: (?=image$)", message)]
    assert len(quoted) >= 5
    assert [part for part in parts if len(part) > 6 and part.removeprefix("warning: ") not in texts] == []


def test_all_pages_have_the_size_of_nanos_pictures() -> None:
    said = {
        "README.md": [f"at {side()}x{side()} pixels", f"{side()} as `area_side`"],
        "docs/api.md": [f"{side()} in place of 1024"],
        "nodes/web/docs/UniWorldLoader.md": [f"at {side()}x{side()}"],
        "nodes/web/docs/UniWorldEmptyLatent.md": [f"{side()} for nano"],
    }
    for name, sentences in said.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert [sentence for sentence in sentences if sentence not in text] == [], name
