"""`uniworld chat` with UniPic, which reveals tokens and reads single instructions, and with a model that only paints."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes import host
from uniworld.nodes.headless.chat.history import FILE
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.loading import speed


@pytest.fixture
def chat(
    unipic: Path, kontext_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run `uniworld chat` with a checkpoint and these lines as input. Returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    for kind, folder in (("unipic", unipic), ("diffusers", kontext_folder)):
        Path("models", kind).mkdir(parents=True)
        Path("models", kind, folder.name).symlink_to(folder, target_is_directory=True)
    Image.linear_gradient("L").convert("RGB").resize((60, 40)).save("cat.png")

    def chat(checkpoint: str, lines: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = main(
            ["chat", "talk", "--checkpoint", checkpoint, "--max-new-tokens", "4", "--dtype", "float32", *options]
        )
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    yield chat
    host.install(None)


def saved() -> list[dict[str, Any]]:
    return json.loads(Path("output", "chat", "talk", FILE).read_text(encoding="utf-8"))["turns"]


def test_unipic_paints_edits_and_answers_as_the_library_does(chat: Any, unipic: Path) -> None:
    lines = "/paint a red ball\n/paint cat.png Make it red.\n/ask What is it?"
    code, out, _ = chat("unipic", lines, "--steps", "2", "--seed", "3")
    assert code == 0
    model = UniWorld.from_pretrained(unipic, dtype=torch.float32)
    folder = Path("output/chat/talk")
    painted, edited = (Image.open(folder / turn["pictures"][0]) for turn in saved()[1:4:2])
    for picture, prompt, refs in ((painted, "a red ball", []), (edited, "Make it red.", [Image.open("cat.png")])):
        z = model.sample(model.encode(prompt, model.reference(refs)), 64, 64, steps=2, seed=3)
        expected = (model.decode(z)[0] * 255).round().to(torch.uint8)
        found = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(64, 64, 3)
        assert int((found.int() - expected.int()).abs().max()) <= 1
    # It reads the latest picture only.
    answer = model.understand("What is it?", model.reference([edited]), max_new_tokens=4)
    assert out.splitlines()[-1] == answer == saved()[5]["text"]
    assert saved()[1]["made"] == {"probability": None, "seed": 3, "steps": 2}


def test_unipic_does_not_choose_and_its_steps_are_the_published_ones(chat: Any) -> None:
    code, out, _ = chat("unipic", "a red ball\n/paint a ball\n", "--json", "--area-side", "96")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    (failed,) = [event for event in found if event["event"] == "failed"]
    assert failed["message"] == (
        "UniPic does not decide between painting and answering: begin the message with /paint or /ask."
    )
    notes = " ".join(found[0]["notes"])
    assert "begin the message with /paint or /ask" in notes
    assert "latest picture only" in notes
    assert "--memory" not in notes
    assert Image.open(found[-2]["images"][0]).size == (96, 96)
    assert saved()[1]["made"]["steps"] == 32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--solver", "dpm2"), "UniPic reveals tokens, without solver and cache: leave out --solver and --cache."),
        (("--cache", "light"), "leave out --solver and --cache"),
        (("--memory", "conversation"), "UniPic reads single instructions: use --memory picture"),
        (("--lora", "uniworld_nano_negative.safetensors"), "UniPic takes no LoRA"),
        (("--compile", "blocks"), "compile is blocks, and UniPicNetwork has no repeated blocks"),
    ],
)
def test_options_that_do_not_apply_to_unipic(
    chat: Any, options: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_compiling", {"cpu"})  # whether this machine has a compiler is not tested here
    code, _, err = chat("unipic", "/paint a ball", *options)
    assert code == 2
    assert sentence in err
    assert not Path("output").exists()


def test_a_second_picture_in_a_message_to_unipic_is_an_error(chat: Any) -> None:
    code, _, err = chat("unipic", "/paint cat.png and cat.png Join them.", "--steps", "1")
    assert code == 1
    assert "The message has 2 pictures, and UniPic edits one" in err


def test_a_model_that_only_paints_always_paints(chat: Any) -> None:
    code, out, _ = chat(
        "FLUX.1-Kontext-dev", "cat.png Make it red.\n/ask Why?", "--steps", "1", "--area-side", "64", "--json"
    )
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert any("FLUX.1 Kontext only paints" in note for note in found[0]["notes"])
    (reply,) = [event for event in found if event["event"] == "reply"]
    assert reply["paint"]
    assert reply["images"]
    (failed,) = [event for event in found if event["event"] == "failed"]
    assert "FLUX.1 Kontext does not answer in text" in failed["message"]
