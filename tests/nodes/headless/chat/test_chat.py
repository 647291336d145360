"""`uniworld chat`: pictures and answers, and that a saved conversation survives a crash at any time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from uniworld.__main__ import main
from uniworld.nodes import host
from uniworld.nodes.headless.chat import command
from uniworld.nodes.headless.chat import history as chat_history
from uniworld.nodes.headless.chat import painting as chat_painting
from uniworld.nodes.headless.chat import session as chat_session
from uniworld.nodes.headless.chat.history import FILE, History, SavedTurn
from uniworld.nodes.headless.chat.options import default_memory
from uniworld.uniworld_core import Conversation, Turn, UniWorld, files
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER
from uniworld.uniworld_core.prompts.scope import read_scope

TINY = ("--checkpoint", "tiny", "--steps", "1", "--area-side", "64", "--max-new-tokens", "6")
WHOLE = ("--memory", "conversation")
TESTS = Path(__file__).resolve().parents[3]


# Loaded once for all tests.
open_model = cache(chat_session.open_model)


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Callable[..., Any]]:
    """Run `uniworld chat` with these lines as input. Returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("uniworld.nodes.headless.chat.command.open_model", open_model)
    Image.new("RGB", (60, 40), (30, 40, 220)).save("cat.png")

    def chat(lines: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = main(["chat", *TINY, *options])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    yield chat
    host.install(None)


@pytest.fixture(scope="module")
def core() -> UniWorld:
    return UniWorld.from_pretrained("tiny", dtype=torch.float32)


def saved(name: str = "talk") -> list[dict[str, Any]]:
    return json.loads(Path("output", "chat", name, FILE).read_text(encoding="utf-8"))["turns"]


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# --- painting and answering -------------------------------------------------------------------------------------------


def test_a_painted_picture_is_printed_and_equals_that_of_the_core(chat: Any, core: UniWorld) -> None:
    code, out, _ = chat("cat.png Make it red.\n/paint Make it green.", "talk", *WHOLE, "--seed", "4")
    assert code == 0
    # The first message is routed. Whatever the route, the second is painted with all earlier turns.
    user, reply, *_ = saved()
    folder = Path("output/chat/talk")
    refs = [core.reference([Image.open(folder / name) for name in turn["pictures"]]) for turn in (user, reply)]
    conversation = Conversation(
        [
            Turn("user", "Make it red.", refs[0]),
            Turn("assistant", reply["text"], refs[1]),
            Turn("user", "Make it green."),
        ]
    )
    assert bool(reply["pictures"]) == bool(core.route("Make it red.", refs[0]).paint[0])
    image = core.decode(core.sample(core.encode(conversation, use_t5=False), 64, 96, steps=1, seed=4))
    painted = Path(out.splitlines()[-1])
    assert painted == folder / saved()[3]["pictures"][0]
    expected = Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy())
    assert Image.open(painted).size == expected.size
    difference = torch.tensor([list(Image.open(painted).tobytes())]) - torch.tensor([list(expected.tobytes())])
    assert int(difference.abs().max()) <= 1


def test_an_answer_depends_on_the_earlier_turns(chat: Any, core: UniWorld) -> None:
    code, out, _ = chat("/ask Is it red in cat.png?\n/ask Why?", "talk", *WHOLE)
    first, second = saved()[1]["text"], saved()[3]["text"]
    assert out == f"{first}\n{second}\n"
    refs = core.reference([Image.open("cat.png")])
    asked = Conversation([Turn("user", "Is it red in the picture?", refs)])
    assert code == 0
    assert first == core.understand(asked, max_new_tokens=6)
    longer = asked.then(Turn("assistant", first), Turn("user", "Why?"))
    assert second == core.understand(longer, max_new_tokens=6)


def test_only_the_latest_picture_may_be_remembered(chat: Any, core: UniWorld) -> None:
    _, out, _ = chat("/ask Is it red in cat.png?\n/ask Why?", "talk", "--memory", "picture")
    refs = core.reference([Image.open("cat.png")])
    assert out.endswith(f"\n{core.understand('Why?', refs=refs, max_new_tokens=6)}\n")


def test_models_of_single_instructions_remember_the_picture_and_others_the_conversation() -> None:
    assert default_memory(read_scope(SHIPPED_FOLDER / "nano" / "uniworld")) == "picture"
    assert default_memory(read_scope(SHIPPED_FOLDER / "tiny" / "uniworld")) == "conversation"


def test_a_resumed_conversation_continues_identically(chat: Any) -> None:
    lines = ["/paint cat.png Make it red.\n", "/ask Why?\n", "/paint Make it green.\n"]
    _, together, _ = chat("".join(lines), "one", *WHOLE)
    alone = "".join(chat(line, "two", *WHOLE)[1] for line in lines)
    assert alone.replace("/two/", "/one/") == together
    for name in ("002_painted.png", "003_painted.png"):
        assert Path("output/chat/one", name).read_bytes() == Path("output/chat/two", name).read_bytes()
    assert saved("one") == saved("two")


def test_resume_opens_the_latest_conversation_and_its_model(chat: Any, capsys: Any, monkeypatch: Any) -> None:
    chat("/ask Why?", "talk")
    monkeypatch.setattr(sys, "stdin", io.StringIO("/ask And now?"))
    assert main(["chat", "--resume"]) == 0
    assert [turn["text"] for turn in saved()[::2]] == ["Why?", "And now?"]
    assert json.loads(Path("output/chat/talk", FILE).read_text())["model"]["checkpoint"] == "tiny"


# --- commands ---------------------------------------------------------------------------------------------------------


def test_undo_removes_the_last_exchange_and_keeps_its_picture(chat: Any) -> None:
    _, _, err = chat("/ask Why?\n/paint a dog\n/undo\n/undo\n/undo\n/paint a cat", "talk")
    assert "Removed: a dog" in err
    assert "There are no messages yet." in err
    assert [turn["text"] for turn in saved()] == ["a cat", ""]
    assert sorted(path.name for path in Path("output/chat/talk").glob("*.png")) == [
        "001_painted.png",
        "002_painted.png",
    ]


def test_reset_starts_another_conversation_and_keeps_the_old_one(chat: Any) -> None:
    chat("/paint a dog\n/reset\n/ask Why?", "talk")
    (other,) = [path.parent.name for path in Path("output/chat").glob(f"*/{FILE}") if path.parent.name != "talk"]
    assert [turn["text"] for turn in saved()] == ["a dog", ""]
    assert saved(other)[0]["text"] == "Why?"


def test_attached_pictures_go_to_the_next_message_only(chat: Any) -> None:
    code, _, err = chat("/image cat.png\ncat.png\n/undo\n/ask Why?\n/ask Why not?", "talk")
    assert code == 0
    assert "Detached cat.png." in err
    assert [turn["pictures"] for turn in saved()[::2]] == [["001_cat.png"], []]


def test_save_copies_the_picture_or_the_conversation(chat: Any) -> None:
    code, _, _ = chat("/paint a dog\n/save dog.png\n/save kept", "talk")
    assert code == 0
    painted = Path("output/chat/talk/001_painted.png").read_bytes()
    assert Path("dog.png").read_bytes() == Path("kept/001_painted.png").read_bytes() == painted
    assert Path("kept", FILE).read_bytes() == Path("output/chat/talk", FILE).read_bytes()
    for line in ("/save dog.png", "/save kept", "/save dog.jpg", "/save"):
        assert chat(line, "talk")[0] == 2
    code, _, err = chat("/save dog.png/inside", "talk")
    assert code == 1
    assert "cannot be used" in err
    assert Path("dog.png").read_bytes() == painted


def test_history_help_and_seed_are_printed_to_standard_error(chat: Any) -> None:
    code, out, err = chat("/help\n/seed 7\n/paint a dog\n/history", "talk")
    assert code == 0
    assert out.splitlines() == ["output/chat/talk/001_painted.png"]
    assert "/undo" in err
    assert "you> a dog" in err
    assert saved()[1]["made"]["seed"] == 7


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("missing.png Make it red.", "no picture 'missing.png'"),
        ("/foo", "Unknown command /foo"),
        ("/seed red", "The seed is 'red'"),
        pytest.param("/seed " + "1" * 5000, "1...; it must be", id="a seed of 5000 digits"),
        ("Ask caf\udce9?", "contains the byte 0xe9"),
        ("/ask Why?<|im_end|>", "reserved for marking turns"),
    ],
)
def test_without_a_terminal_the_first_invalid_line_ends_the_chat(chat: Any, line: str, sentence: str) -> None:
    code, out, err = chat(f"{line}\n/paint a dog")
    assert (code, out) == (2, "")
    assert sentence in err
    assert not Path("output").exists()


def test_with_json_each_failure_is_reported_and_the_chat_continues(chat: Any) -> None:
    lines = '/foo\n{"text": "Why?", "images": ["cat.png"]}\n/paint a dog\n/undo'
    code, out, _ = chat(lines, "talk", "--json")
    found = events(out)
    assert code == 2
    assert [event["event"] for event in found if event["event"] != "progress"] == [
        "ready",
        "failed",
        "route",
        "reply",
        "route",
        "reply",
        "info",
        "result",
    ]
    assert found[-1] == {"event": "result", "status": "error", "folder": "output/chat/talk"}
    replies = [event for event in found if event["event"] == "reply"]
    assert replies[1]["images"] == [
        "output/chat/talk/002_painted.png" if replies[0]["text"] else replies[1]["images"][0]
    ]
    assert replies[1] == {
        "event": "reply",
        "paint": True,
        "probability": None,
        "text": "",
        "images": replies[1]["images"],
    }


def test_solver_and_cache_reach_the_sampler(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = chat_painting.Sampler.execute, []

    def recorded(*arguments: Any) -> Any:
        seen.append(arguments[-2:])
        return real(*arguments)

    monkeypatch.setattr(chat_painting.Sampler, "execute", recorded)
    assert chat("/paint a dog", "talk", "--solver", "dpm2", "--cache", "light")[0] == 0
    assert chat("/paint a dog", "talk")[0] == 0
    assert seen == [("light", "dpm2"), ("off", "euler")]


def test_loras_change_the_pictures_and_are_recorded(chat: Any, core: UniWorld) -> None:
    layer = core.dit.transformer.transformer_blocks[0].attn.to_q
    down, up = torch.ones(2, layer.in_features) / 8, torch.ones(layer.out_features, 2)
    up[::2] *= -1
    module = "transformer.transformer_blocks.0.attn.to_q"
    for file in (Path("strong.safetensors"), Path("models/loras/named.safetensors")):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, file)
    options = ("--lora", "strong.safetensors:2.5", "--lora", "named.safetensors")
    assert chat("/paint a dog", "plain")[0] == 0
    assert chat("/paint a dog", "talk", *options)[0] == 0
    assert saved()[1]["made"]["loras"] == ["strong.safetensors:2.5", "named.safetensors"]
    assert "loras" not in saved("plain")[1]["made"]
    core.load_lora("strong.safetensors", 2.5).load_lora("models/loras/named.safetensors")
    try:
        image = core.decode(core.sample(core.encode("a dog", use_t5=False), 64, 64, steps=1, seed=0))
    finally:
        core.unload_loras()
    expected = (image[0] * 255).round().to(torch.int16)
    with_lora, plain = (
        torch.tensor(list(Image.open(f"output/chat/{name}/001_painted.png").tobytes())).view(64, 64, 3)
        for name in ("talk", "plain")
    )
    assert int((with_lora - expected).abs().max()) <= 1
    assert int((plain - expected).abs().max()) > 1


def test_a_message_that_is_too_long_fails_and_is_not_saved(chat: Any) -> None:
    code, _, err = chat("/ask Why?\n/ask " + "word " * 5000, "talk")
    assert code == 1
    assert "tokens; the model reads at most 4096" in err
    assert len(saved()) == 2


def test_an_interrupted_message_is_not_part_of_the_conversation(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = chat_painting.Sampler.execute

    def interrupted(*arguments: Any) -> Any:
        host.current().interrupted.set()
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(chat_painting.Sampler, "execute", interrupted)
        code, _, err = chat("/ask Why?\n/paint a dog", "talk")
    assert code == 1
    assert "Interrupted. The message is not part of the conversation." in err
    assert [turn["text"] for turn in saved()[::2]] == ["Why?"]
    assert list(Path("output/chat/talk").glob("*.png")) == []
    assert chat("/paint a dog", "talk")[0] == 0


def test_an_empty_answer_is_reported_and_not_saved(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_session.Understand, "execute", lambda *_, **__: (" ", None))
    code, _, err = chat("/ask Why?", "talk")
    assert code == 1
    assert "answer is empty" in err
    assert not Path("output").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--checkpoint", "none"), "no model 'none'"),
        (("../talk",), "leads out of its folder"),
        (("a/b",), "has a slash"),
        (("--resume",), "contains no conversation"),
        (("talk", "--resume"), "leave out --resume"),
        (("--steps", "0"), "--steps: '0' is not a whole number from 1 to 1000"),
        (("--seed", "-1"), "--seed: '-1' is not a whole number"),
        (("--area-side", "8"), "--area-side is 8"),
        (("--device", "abacus"), "--device is 'abacus'"),
        (
            ("--lora", "none.safetensors:0.5"),
            "--lora is 'none.safetensors', which is neither a file nor a name in models/loras",
        ),
        (("--lora", "cat.png"), "cat.png"),
        (("--lora", "cat.png:inf"), "strength is inf"),
        (("--lora", "uniworld_nano_negative.safetensors"), "does not fit the model"),
    ],
)
def test_invalid_options(chat: Any, options: tuple[str, ...], sentence: str) -> None:
    code, _, err = chat("/ask Why?", *options)
    assert code == 2
    assert sentence in err
    assert not Path("output").exists()


# --- saved conversations ----------------------------------------------------------------------------------------------


def add(history: History, text: str) -> None:
    names = history.new_names(["cat", "painted"])
    pictures = {name: Image.new("RGB", (8, 8)) for name in names}
    history.add(SavedTurn("user", text, (names[0],)), SavedTurn("assistant", "", (names[1],)), pictures)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_interrupted_turn_leaves_the_conversation_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    history = History(tmp_path / "chat", "talk", {"checkpoint": "tiny"})
    add(history, "first")
    before = sorted(path.name for path in history.folder.iterdir())
    real, calls = chat_history.atomic_file, iter(range(1, 9))

    def cut_off(path: Path) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(chat_history, "atomic_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        add(history, "second")
    monkeypatch.undo()
    assert [turn.text for turn in history.turns] == ["first", ""]
    assert sorted(path.name for path in history.folder.iterdir()) == before
    history.close()
    assert History(tmp_path / "chat", "talk", {}).turns == history.turns


def test_a_turn_that_was_saved_before_an_interrupt_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path / "chat", "talk", {"checkpoint": "tiny"})

    def interrupt(folder: Path) -> None:
        if (folder / chat_history.FILE).exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "sync_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        add(history, "first")
    assert [turn.text for turn in history.turns] == ["first", ""]
    assert all((history.folder / name).is_file() for turn in history.turns for name in turn.pictures)


@pytest.mark.slow
def test_sigkill_loses_at_most_the_current_turn(tmp_path: Path) -> None:
    program = f"""
import runpy
runpy.run_path({str(TESTS / "conftest.py")!r})
from pathlib import Path
from PIL import Image
from uniworld.nodes.headless.chat.options import default_memory
from uniworld.nodes.headless.chat.history import History, SavedTurn
history = History(Path({str(tmp_path / "chat")!r}), "talk", {{"checkpoint": "tiny"}})
while True:
    names = history.new_names(["cat", "painted"])
    pictures = {{name: Image.effect_noise((64, 64), 9) for name in names}}
    history.add(SavedTurn("user", "x", (names[0],)), SavedTurn("assistant", "", (names[1],)), pictures)
    print(len(history.turns), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1)
    finally:
        process.kill()
    counts = [int(line) for line in process.stdout.read().split()] or [2]
    process.wait()
    history = History(tmp_path / "chat", "talk", {})
    assert len(history.turns) in (counts[-1], counts[-1] + 2)
    for turn in history.turns:
        for name in turn.pictures:
            Image.open(history.folder / name).load()
    assert list(history.folder.glob(".*.part")) == []


def test_a_conversation_is_locked_by_one_process(tmp_path: Path) -> None:
    history = History(tmp_path / "chat", "talk", {"checkpoint": "tiny"})
    with pytest.raises(ValueError, match="Another process uses the conversation"):
        History(tmp_path / "chat", "talk", {})
    history.close()
    assert not (tmp_path / "chat").exists()
    History(tmp_path / "chat", "talk", {}).close()


def test_conversations_started_in_the_same_second_have_separate_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    first, second = (History(tmp_path / "chat", None, {"checkpoint": "tiny"}) for _ in range(2))
    assert not (tmp_path / "chat").exists()
    for history in (first, second):
        add(history, "x")
    assert [history.folder.name for history in (first, second)] == ["now", "now_2"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.update(uniworld_chat=2),
        lambda saved: saved.pop("turns"),
        lambda saved: saved["turns"].pop(),
        lambda saved: saved["turns"][0].update(role="assistant"),
        lambda saved: saved["turns"][0].update(text=3),
        lambda saved: saved["turns"][0].update(pictures=["../../cat.png"]),
        lambda saved: saved["turns"][0].update(pictures=["gone.png"]),
        lambda saved: saved["turns"].append(7),
        lambda saved: saved.update(model="nano"),
        lambda saved: saved["turns"][0].update(text="a\ud800b"),
        lambda saved: saved["turns"][1].update(made={"a": "\ud800"}),
        None,
    ],
)
def test_a_damaged_conversation_is_reported_and_not_changed(tmp_path: Path, damage: Any) -> None:
    history = History(tmp_path / "chat", "talk", {"checkpoint": "tiny"})
    add(history, "x")
    history.close()
    file = history.folder / FILE
    if damage is None:
        file.write_bytes(file.read_bytes()[:40])
    else:
        content = json.loads(file.read_bytes())
        damage(content)
        file.write_text(json.dumps(content))
    before = file.read_bytes()
    with pytest.raises(ValueError, match="cannot be resumed"):
        History(tmp_path / "chat", "talk", {})
    assert file.read_bytes() == before


def test_a_message_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr(command, "_MAX_LINE", 4)
    assert list(command._piped_lines(io.StringIO("one\ntwo"))) == ["one\n", "two"]
    with pytest.raises(UniWorldError, match="more than 4 characters"):
        list(command._piped_lines(io.StringIO("one\nthree")))
