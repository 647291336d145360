"""The workflows of other families: layout, and that they run unchanged on a model in models/diffusers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from workflows.catalog import CATALOG  # noqa: E402
from workflows.families import EDITS, graphs  # noqa: E402
from workflows.layout import around, covered_titles, crossings, opened_scale  # noqa: E402

NAMES = [name for name, entry in CATALOG.items() if entry.needs_model]
FAST = ("UniWorld Sampler.steps=1", "Load UniWorld.dtype=float32")


def file(name: str) -> Path:
    return ROOT / "workflows" / f"{CATALOG[name].file}.json"


def read(name: str) -> dict[str, Any]:
    return json.loads(file(name).read_text(encoding="utf-8"))


@pytest.fixture
def models(kontext_folder: Path) -> dict[str, Path]:
    """The folder of models in which the checkpoint of each workflow lies."""
    return {"kontext_edit": kontext_folder.parents[1]}


@pytest.fixture
def unipic_models(unipic: Path, tmp_path: Path) -> Path:
    """A folder of models with a UniPic under the name in the workflows."""
    folder = tmp_path / "models"
    (folder / "unipic").mkdir(parents=True)
    (folder / "unipic" / "Skywork-UniPic-1.5B").symlink_to(unipic, target_is_directory=True)
    return folder


def run(capsys: Any, models: Path, name: str, *changes: str) -> tuple[int, list[str], str]:
    from uniworld.__main__ import main

    code = main(["run", name, "--models", str(models), *(f"--set={change}" for change in (*FAST, *changes))])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


@pytest.mark.parametrize("name", NAMES)
class TestFile:
    def test_the_builder_makes_what_is_committed(self, name: str) -> None:
        (graph,) = (one for one in graphs() if one.name == name)
        assert graph.editor() == read(name)
        card = file(name).with_suffix(".jpg")
        with Image.open(card) as picture:
            assert picture.size == (400, 400)
        assert card.stat().st_size < 30_000

    def test_it_is_readable(self, name: str) -> None:
        workflow = read(name)
        boxes = [around(node) for node in workflow["nodes"]]
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.meets(b, 16)]
        assert crossings(workflow) == covered_titles(workflow) == []
        assert opened_scale(boxes) >= 0.6
        (graph,) = (one for one in graphs() if one.name == name)
        widths = {node["id"]: node["size"][0] for node in workflow["nodes"]}
        shown = [node for node in graph.nodes if not node.collapsed]
        assert all(widths[node.id] >= graph.least_width(node) for node in shown)

    def test_its_card_and_its_name_say_which_model_it_needs(self, name: str) -> None:
        from uniworld.nodes.headless.serve.content import stock_templates
        from uniworld.nodes.headless.workflow.file import find_workflow, list_shipped, shipped_workflows

        assert find_workflow(name) == file(name)
        assert name not in shipped_workflows()
        model = CATALOG[name].needs_model
        assert f"{name} ({model})" in list_shipped()
        (card,) = (card for card in stock_templates()[0]["templates"] if card["name"] == name)  # type: ignore[attr-defined]
        assert card["models"] == [model]


def test_every_family_has_its_settings() -> None:
    assert set(EDITS) <= set(NAMES)


class TestKontext:
    def test_it_edits(
        self, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, out, err = run(capsys, models["kontext_edit"], "kontext_edit")
        assert code == 0, err
        with Image.open(out[-1].strip()) as saved:
            assert saved.size == (80, 48)  # the preferred ratio of 451x300, at the tiny VAE's native side of 64
            first = saved.tobytes()
        code, out, err = run(capsys, models["kontext_edit"], "kontext_edit", "UniWorld Condition.prompt=Make it red.")
        assert code == 0, err
        with Image.open(out[-1].strip()) as saved:
            assert saved.tobytes() != first

    def test_the_edit_of_uniworld_runs_on_it_unchanged(
        self, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("edit", "edit_with_mask", "perception_depth"):
            code, _, err = run(
                capsys,
                models["kontext_edit"],
                name,
                "Load UniWorld.checkpoint=FLUX.1-Kontext-dev",
                "Load UniWorld.flux=nano",
            )
            assert code == 0, err
            assert "FLUX.1 Kontext has all its parts in its own folder; ignored: flux nano." in err

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("understand", "FLUX.1 Kontext does not answer in text"),
            ("auto_route", "FLUX.1 Kontext has no routing head"),
        ],
    )
    def test_what_it_lacks_is_one_sentence(
        self,
        models: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: Any,
        name: str,
        said: str,
    ) -> None:
        from uniworld.__main__ import main

        monkeypatch.chdir(tmp_path)
        options = ["--models", str(models["kontext_edit"]), "--set", "Load UniWorld.checkpoint=FLUX.1-Kontext-dev"]
        assert main(["run", name, *options]) == 1
        assert said in capsys.readouterr().err

    def test_without_the_model_the_error_names_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, _, err = run(capsys, tmp_path, "kontext_edit")
        assert code == 2
        assert "'FLUX.1-Kontext-dev'" in err
        assert "This workflow is for FLUX.1-Kontext-dev: download it as the README says" in err

    def test_a_folder_that_is_not_the_model_is_named_with_the_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "diffusers" / "FLUX.1-Kontext-dev"
        (folder / "transformer").mkdir(parents=True)
        code, _, err = run(capsys, tmp_path, "kontext_edit")
        assert code == 2
        assert "This workflow is for FLUX.1-Kontext-dev, whose folder cannot be used" in err
        assert f"{folder} has none of the files" in err

    def test_rows_of_a_batch(
        self, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        from uniworld.__main__ import main

        monkeypatch.chdir(tmp_path)
        settings = dict(change.split("=") for change in FAST)
        prompts = [{"UniWorld Condition.prompt": f"Make it {i}."} for i in range(2)]
        rows = [{"id": str(i), "set": prompt | settings} for i, prompt in enumerate(prompts)]
        Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        shutil.copy(ROOT / "workflows" / "input" / "cat.jpg", tmp_path)
        options = ["--rows", "rows.jsonl", "--models", str(models["kontext_edit"])]
        assert main(["batch", "kontext_edit", *options]) == 0, capsys.readouterr().err
        assert len(list(tmp_path.rglob("*.png"))) == 2

    def test_a_chat_edits_its_latest_picture(
        self, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        import io

        from uniworld.__main__ import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.stdin", io.StringIO("/paint a cat\n/paint Make it red.\n"))
        options = ["--models", str(models["kontext_edit"]), "--checkpoint", "FLUX.1-Kontext-dev", "--steps", "1"]
        assert main(["chat", *options]) == 0, capsys.readouterr().err
        assert len(list(tmp_path.rglob("*_painted.png"))) == 2


class TestQwen:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_it_edits_and_combines(self, qwen_edit: Path, capsys: Any) -> None:
        made = set()
        for name, change, size in (
            ("qwen_edit", "UniWorld Sampler.guidance=4.0", (64, 64)),
            ("qwen_edit", "UniWorld Sampler.guidance=1.0", (64, 64)),
            ("qwen_edit", "UniWorld Condition.negative_prompt=dull", (64, 64)),
            ("qwen_multi_reference", "UniWorld Sampler.guidance=4.0", (64, 64)),
        ):
            code, out, err = run(capsys, qwen_edit.parents[1], name, change)
            assert code == 0, err
            with Image.open(out[-1].strip()) as saved:
                assert saved.size == size
                made.add(saved.tobytes())
        assert len(made) == 4

    def test_workflows_of_uniworld_run_on_it_unchanged(self, qwen_edit: Path, capsys: Any) -> None:
        loader = ("checkpoint=Qwen-Image-Edit-2509", "flux=nano", "storage=int8", "offload=none")
        changes = [f"Load UniWorld.{change}" for change in loader]
        for name in ("edit_with_mask", "perception_depth"):
            code, _, err = run(capsys, qwen_edit.parents[1], name, *changes)
            assert code == 0, err
            assert "Qwen-Image-Edit-2509 has all its parts in its own folder; ignored: flux nano." in err

    def test_what_others_lack_is_one_sentence(self, qwen_edit: Path, capsys: Any) -> None:
        code, _, err = run(capsys, qwen_edit.parents[1], "auto_route", "Load UniWorld.checkpoint=Qwen-Image-Edit-2509")
        assert code == 1
        assert "Qwen-Image-Edit-2509 has no routing head" in err
        code, _, err = run(
            capsys,
            qwen_edit.parents[1],
            "edit",
            "Load UniWorld.checkpoint=tiny",
            "UniWorld Condition.negative_prompt=dull",
        )
        assert code == 1
        assert "UniWorld-V1 was not trained with a negative prompt: leave it empty." in err

    def test_a_chat_edits_its_latest_picture(
        self, qwen_edit: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        import io

        from uniworld.__main__ import main

        options = ["--models", str(qwen_edit.parents[1]), "--checkpoint", "Qwen-Image-Edit-2509", "--steps", "1"]
        painted = []
        for guidance in ([], ["--guidance", "4"], ["--guidance", "1"]):
            monkeypatch.setattr("sys.stdin", io.StringIO("/paint a cat\n/paint Make it red.\n"))
            before = set(Path.cwd().rglob("*_painted.png"))
            assert main(["chat", *options, *guidance]) == 0, capsys.readouterr().err
            painted.append([file.read_bytes() for file in sorted(set(Path.cwd().rglob("*_painted.png")) - before)])
        assert [len(files) for files in painted] == [2, 2, 2]
        assert painted[0] == painted[1] != painted[2]  # without the option, the guidance is the family's


class TestUniPic:
    SMALL = ("UniWorld UniPic Sampler.iterations=2",)

    def ran(self, capsys: Any, models: Path, name: str, *changes: str) -> str:
        from uniworld.__main__ import main

        changes = ("Load UniWorld.dtype=float32", *changes)
        code = main(["run", name, "--models", str(models), *(f"--set={change}" for change in changes)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out.splitlines()[-1].strip()

    def test_all_three_run(
        self, unipic_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with Image.open(self.ran(capsys, unipic_models, "unipic_text_to_image", *self.SMALL)) as saved:
            assert saved.size == (64, 64)
        with Image.open(ROOT / "workflows" / "input" / "cat.jpg") as source:
            before = source.convert("RGB")
        with Image.open(self.ran(capsys, unipic_models, "unipic_edit", *self.SMALL)) as saved:
            assert saved.size == before.size
            edge = (before.width - before.height) // 2
            assert edge > 10
            outside = [(0, 0, edge, before.height), (before.width - edge, 0, *before.size)]
            assert all(saved.crop(box).tobytes() == before.crop(box).tobytes() for box in outside)
            assert saved.tobytes() != before.tobytes()
        assert self.ran(capsys, unipic_models, "unipic_understand", "UniWorld Understand.max_new_tokens=3")

    def test_without_the_model_the_error_names_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        from uniworld.__main__ import main

        monkeypatch.chdir(tmp_path)
        assert main(["run", "unipic_edit", "--models", str(tmp_path)]) == 2
        assert "Skywork-UniPic-1.5B" in capsys.readouterr().err
