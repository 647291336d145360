"""`uniworld run --server` and `check --server`: what is sent, what comes back, and every way in which a server can fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from PIL import Image
from uniworld.nodes.headless.remote import client as client_module
from uniworld.nodes.headless.remote import downloads, prompt_run

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_picture_gets_the_name_that_a_local_run_would_give_it(uniworld, write, graphs, fake, tmp_path):
    (tmp_path / "results" / "deep").mkdir(parents=True)
    (tmp_path / "results" / "deep" / "p_00001_.png").write_bytes(b"mine")
    code, out, err = uniworld("run", write(graphs["picture"]), "--server", fake.url, "--output", "results")
    assert (code, out) == (0, str(Path("results", "deep", "p_00002_.png")) + "\n")  # p_00041_ on the server
    with Image.open(tmp_path / "results" / "deep" / "p_00002_.png") as picture:
        assert picture.size == (6, 4)
    assert "Picture (1): 100%" in err
    assert (tmp_path / "results" / "deep" / "p_00001_.png").read_bytes() == b"mine"
    assert len(list((tmp_path / "results").rglob("*"))) == 3


def test_texts_sound_and_previews_are_reported_as_locally(uniworld, write, fake, tmp_path):
    prompt = {
        "1": node("Say", text="hello"), "2": node("SaveAudio", filename_prefix="audio/x"),
        "3": node("Picture", seed=1), "4": node("PreviewImage", images=["3", 0]),
    }  # fmt: skip
    code, out, _ = uniworld("run", write(prompt), "--server", fake.url)
    lines = out.splitlines()
    assert (code, lines[:2]) == (0, ["Say: hello", str(Path("output", "audio", "x_00001_.flac"))])
    assert (tmp_path / "output" / "audio" / "x_00001_.flac").read_bytes() == b"sound"
    preview = Path(lines[2].removeprefix("PreviewImage (preview): "))
    assert preview.name == "ComfyUI_temp_abc_00001_.png"
    assert preview.is_file()
    assert not preview.is_relative_to(tmp_path / "output")


def test_json_has_the_events_of_a_local_run(uniworld, write, graphs, fake):
    code, out, _ = uniworld("run", write(graphs["picture"]), "--server", fake.url, "--json")
    found = events(out)
    names = [one["event"] for one in found]
    assert code == 0
    assert names == [
        "execution_start", "execution_cached", "executing", "progress", "executing", "progress", "executed",
        "execution_success", "result",
    ]  # fmt: skip
    assert all({"prompt_id", "timestamp"} <= one.keys() for one in found[:-1])
    assert found[-1]["images"] == [str(Path("output", "deep", "p_00001_.png"))]
    assert found[-1]["outputs"]["2"]["images"][0]["filename"] == "p_00001_.png"
    assert found[3] | {"prompt_id": "", "timestamp": 0} == {
        "event": "progress", "value": 1, "max": 9, "node": "1", "prompt_id": "", "timestamp": 0,
    }  # fmt: skip


def test_the_error_of_a_blocked_node_does_not_end_the_run(uniworld, write, fake, monkeypatch):
    monkeypatch.setattr(prompt_run, "_CONFIRM", 0.1)
    prompt = {"1": node("Blocked"), "2": node("Wait", steps=30), "3": node("Say", text="hello")}
    code, out, _ = uniworld("run", write(prompt), "--server", fake.url, "--json")
    names = [one["event"] for one in events(out)]
    assert code == 0
    assert [name for name in names if name in ("execution_error", "execution_success")] == [
        "execution_error",
        "execution_success",
    ]
    assert events(out)[-1]["texts"] == ["hello"]
    looks = [path for path, _ in fake.headers if path.startswith("/history")]
    assert len(looks) < 20  # it is not polled fast until the end


def test_messages_that_come_after_the_history_are_not_lost(uniworld, write, graphs, fake, monkeypatch):
    """A short run is in the history before the client has read its messages."""
    send = fake._send

    async def late(client, kind, data):
        asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(send(client, kind, data)))

    async def answer_when_it_has_run(request):
        response = await fake._prompt(request)
        while not fake.ran:
            await asyncio.sleep(0.01)
        return response

    monkeypatch.setattr(fake, "_send", late)
    fake.fail["/prompt"] = answer_when_it_has_run
    code, out, _ = uniworld("run", write(graphs["picture"]), "--server", fake.url, "--json")
    names = [one["event"] for one in events(out)]
    assert (code, names.count("executing"), names.count("progress"), names[-1]) == (0, 2, 2, "result")


EVIL = ["../evil.png", "/tmp/evil.png", "a\\..\\..\\evil.png", "..", "C:evil.png", "deep/evil.png", "x\0.png"]


@pytest.mark.parametrize("name", EVIL)
def test_names_from_the_server_never_leave_the_output_folder(uniworld, write, graphs, fake, tmp_path, name):
    fake.names["SaveImage"] = [{"filename": name, "subfolder": "", "type": "output"}]
    before = {path for path in tmp_path.parent.rglob("*") if path.name != "w.json"}
    code, _, err = uniworld("run", write(graphs["picture"]), "--server", fake.url)
    assert code == 1
    assert "is not downloaded" in err
    assert {path for path in tmp_path.parent.rglob("*") if path.name != "w.json"} == before


@pytest.mark.parametrize("subfolder", ["..", "../..", "a/../../b", "~"])
def test_folders_from_the_server_never_leave_the_output_folder(uniworld, write, graphs, fake, tmp_path, subfolder):
    fake.names["SaveImage"] = [{"filename": "evil.png", "subfolder": subfolder, "type": "output"}]
    code, _, err = uniworld("run", write(graphs["picture"]), "--server", fake.url)
    assert (code, list(tmp_path.rglob("evil*"))) == (1, [])
    assert "is not downloaded" in err


def test_all_files_of_a_run_get_their_names_or_none(uniworld, write, graphs, fake, tmp_path):
    fake.files["output", "", "p_00001_.png"] = b"one"
    entries = [{"filename": f"p_0000{n}_.png", "subfolder": "", "type": "output"} for n in (1, 2)]
    fake.names["SaveImage"] = entries
    code, _, err = uniworld("run", write(graphs["picture"]), "--server", fake.url)
    assert code == 1
    assert "'p_00002_.png' cannot be downloaded" in err
    assert not list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob("*.part"))


def test_a_download_that_breaks_is_tried_again(uniworld, write, graphs, fake, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_PAUSE", 0.01)
    tries = []

    async def cut_short(request):
        tries.append(1)
        if len(tries) > 2:
            return None
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"half")
        request.transport.close()
        return response

    fake.fail["/view"] = cut_short
    assert uniworld("run", write(graphs["picture"]), "--server", fake.url)[0] == 0
    assert len(tries) == 3
    with Image.open(tmp_path / "output" / "deep" / "p_00001_.png") as picture:
        assert picture.size == (6, 4)


def test_a_file_that_is_too_large_is_not_kept(uniworld, write, graphs, fake, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "FILE_BYTES", 20)
    code, _, err = uniworld("run", write(graphs["picture"]), "--server", fake.url)
    assert code == 1
    assert "sends more than" in err
    assert not list(tmp_path.rglob("*_.png"))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "text", "said"), [
    ("ValueError", "The oven is cold.\nLight it.", "The oven is cold. Light it."),
    ("uniworld.uniworld_core.errors.UniWorldError", "No such size.", "No such size."),
    ("custom_nodes.uniworld.uniworld_core.errors.UniWorldError", "No such size.", "No such size."),
    ("UnicodeDecodeError", "bad byte", "bad byte"),
    ("RuntimeError", "first line\na dump", "RuntimeError: first line"),
    ("torch.OutOfMemoryError", "", "OutOfMemoryError"),
])  # fmt: skip
def test_an_error_is_the_sentence_of_a_local_run(uniworld, write, fake, kind, text, said):
    code, out, err = uniworld("run", write({"7": node("Fail", kind=kind, text=text)}), "--server", fake.url)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == f"Node 7 (Fail) failed: {said}"
    assert "Fail (7):   0%" in err
    assert "100%" not in err  # it did not finish


@pytest.mark.parametrize("ui", [
    {"text": "a text"}, {"text": 5}, {"images": [5, None, {"filename": 5}, {"filename": "a.png", "subfolder": 5}]},
    {"images": [{"filename": "a.png", "type": "odd"}]}, {"images": None, "text": [["nested"]]},
])  # fmt: skip
def test_outputs_of_any_shape_end_in_no_traceback(uniworld, write, graphs, fake, ui, monkeypatch):
    monkeypatch.setattr(fake, "_shown", lambda node: ui)
    assert uniworld("run", write(graphs["say"]), "--server", fake.url)[0] == 0
    assert uniworld("run", write(graphs["say"]), "--server", fake.url, "--json")[0] == 0


def test_texts_of_a_server_do_not_control_the_terminal(uniworld, write, fake):
    prompt = {"7": node("Fail", kind="ValueError", text="red \x1b[31m\x07")}
    assert "\x1b" not in uniworld("run", write(prompt), "--server", fake.url)[2]
    fake.fail["/object_info"] = lambda request: web.json_response({"error": "\x1b[31mno"}, status=403)
    code, _, err = uniworld("run", write(prompt), "--server", fake.url)
    assert code == 2
    assert "\x1b" not in err


def test_a_refusal_is_exit_code_2_with_a_sentence_for_each_error(uniworld, write, graphs, fake):
    error = {"type": "custom_validation_failed", "message": "Custom validation failed for node", "extra_info": {}}
    errors = [
        {**error, "details": "image - The file is gone."},
        {**error, "type": "odd", "message": "Odd", "details": "x"},
    ]
    body = {"error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}}
    body["node_errors"] = {"1": {"errors": errors, "dependent_outputs": ["2"], "class_type": "Picture"}}
    fake.fail["/prompt"] = lambda request: web.json_response(body, status=400)
    code, out, err = uniworld("run", write(graphs["picture"]), "--server", fake.url)
    assert (code, out) == (2, "")
    assert "Node 1 (Picture): The file is gone.\n  Node 1 (Picture): Odd: x." in err
    code, out, _ = uniworld("run", write(graphs["picture"]), "--server", fake.url, "--json")
    last = events(out)[-1]
    assert (code, last["event"], last["node_errors"]) == (2, "invalid", body["node_errors"])


def test_a_prompt_of_which_some_outputs_are_invalid_does_not_run(uniworld, write, graphs, fake):
    fake.hold.clear()

    async def partly(request):
        response = await fake._prompt(request)
        answer = json.loads(response.text)
        answer["node_errors"] = {
            "1": {"errors": [{"type": "x", "message": "Bad", "details": "seed"}], "class_type": "Picture"}
        }
        return web.json_response(answer)

    fake.fail["/prompt"] = partly
    code, _, err = uniworld("run", write(graphs["picture"]), "--server", fake.url)
    assert code == 2
    assert "Node 1 (Picture): Bad: seed." in err
    assert (fake.waiting, fake.running, fake.ran) == ([], None, [])


@pytest.mark.parametrize(("path", "answer", "said"), [
    ("/object_info", web.Response, "is not valid JSON"), ("/object_info", lambda **_: web.json_response([]), "describes no nodes"),
    ("/object_info", lambda **_: web.Response(text="<html>"), "is not valid JSON"),
    ("/object_info", lambda **_: web.Response(status=500), "refuses /object_info: 500"),
    ("/object_info", lambda **_: web.Response(status=302, headers={"Location": "http://elsewhere/"}), "redirects to 'http://elsewhere/'"),
    ("/object_info", lambda **_: web.Response(body=b"\xff"), "UTF-8"),
])  # fmt: skip
def test_an_address_of_something_else_is_exit_code_2(uniworld, write, graphs, fake, path, answer, said):
    fake.fail[path] = lambda request: answer()
    code, out, err = uniworld("run", write(graphs["say"]), "--server", fake.url)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(("path", "answer"), [
    ("/prompt", {"odd": 1}), ("/prompt", [1]), ("/queue", {"odd": 1}), ("/queue", 5),
])  # fmt: skip
def test_rubbish_in_the_middle_of_a_run_is_one_sentence(uniworld, write, graphs, fake, path, answer):
    fake.hold.clear()
    fake.fail[path] = lambda request: (
        web.json_response(answer) if request.method != "GET" or path != "/prompt" else None
    )
    code, _, err = uniworld("run", write(graphs["say"]), "--server", fake.url)
    assert code == 1
    assert "Is it ComfyUI?" in err


def test_a_server_that_is_not_there_is_exit_code_2(uniworld, write, graphs):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    code, out, err = uniworld("run", write(graphs["say"]), "--server", url)
    assert (code, out) == (2, "")
    assert err == f"The server {url} cannot be reached: connection refused.\n"


def raw_server(answer: Any) -> Any:
    """Serve connections one after the other: `answer` gets each socket after its request was read."""

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(2**16)
                answer(connection)

    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listening,), daemon=True).start()
    return listening


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("body", [b"Content-Length: 400\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n9\r\n{"])
def test_a_truncated_answer_is_one_sentence(uniworld, write, graphs, body):
    with raw_server(lambda connection: connection.sendall(HEAD + body)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        code, out, err = uniworld("check", write(graphs["say"]), "--server", url)
        server.shutdown(socket.SHUT_RDWR)
    assert (code, out) == (2, "")
    assert err == f"The server {url} cannot be reached: its response ends before it is complete.\n"


@pytest.mark.parametrize("status", [b"200 OK", b"500 Error"])
def test_an_answer_that_trickles_in_has_an_end(uniworld, write, graphs, monkeypatch, status):
    def trickle(connection: socket.socket) -> None:
        connection.sendall(HEAD.replace(b"200 OK", status) + b"Content-Length: 4000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)

    limits = partial(client_module.Timeouts, answer=0.5)
    monkeypatch.setattr(client_module, "Timeouts", limits)
    with raw_server(trickle) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        code, out, err = uniworld("check", write(graphs["say"]), "--server", url)
        server.shutdown(socket.SHUT_RDWR)
    assert (code, out) == (2, "")
    assert err == f"The server {url} cannot be reached: it does not answer in time.\n"
    assert time.monotonic() - started < 4


def test_a_server_of_another_protocol_is_one_sentence(uniworld, write, graphs):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(b"SSH-2.0-other\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        code, out, err = uniworld("run", write(graphs["say"]), "--server", url)
        thread.join()
    assert (code, out) == (2, "")
    assert err == f"The server {url} cannot be reached: its response is not valid HTTP.\n"


def test_https_to_a_server_without_tls_names_the_fix(uniworld, write, graphs, fake):
    code, _, err = uniworld("run", write(graphs["say"]), "--server", fake.url.replace("http:", "https:"))
    assert code == 2
    assert "does not accept an encrypted connection. If it does not use TLS, write http:// instead of https://." in err


def test_a_certificate_that_is_not_trusted_is_called_so():
    error = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    failed = aiohttp.ClientConnectorCertificateError(SimpleNamespace(host="here", port=1, is_ssl=True, ssl=True), error)
    assert client_module._reason(failed).startswith("its certificate is not trusted (")
    assert "self-signed certificate" in client_module._reason(failed)


# --- broken connections -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [0, 1, 3, 5])
def test_a_socket_that_breaks_changes_no_event_that_matters(uniworld, write, graphs, fake, messages, monkeypatch):
    monkeypatch.setattr(prompt_run, "COLD_POLL", 0.05)
    monkeypatch.setattr(prompt_run, "WARM_POLL", 0.05)
    fake.messages_per_socket = messages
    code, out, _ = uniworld("run", write(graphs["picture"]), "--server", fake.url, "--json")
    names = [one["event"] for one in events(out)]
    assert code == 0
    for name in ("execution_start", "execution_cached", "executed", "execution_success", "result"):
        assert names.count(name) == 1
    assert names[-2:] == ["execution_success", "result"]


def test_a_server_without_a_socket_is_polled(uniworld, write, graphs, fake, monkeypatch):
    monkeypatch.setattr(prompt_run, "COLD_POLL", 0.05)
    fake.fail["/ws"] = lambda request: web.Response(status=404)
    assert uniworld("run", write(graphs["say"]), "--server", fake.url)[:2] == (0, "Say: hello\n")


def test_a_prompt_whose_answer_is_lost_is_queued_once(uniworld, write, graphs, fake, monkeypatch):
    monkeypatch.setattr(prompt_run, "_FIRST_PAUSE", 0.02)

    async def lose(request):
        response = await fake._prompt(request)
        request.transport.close()
        return response

    fake.fail["/prompt"] = lose
    assert uniworld("run", write(graphs["say"]), "--server", fake.url)[:2] == (0, "Say: hello\n")
    assert len(fake.posted) == 1


def test_a_prompt_that_never_arrived_is_queued_again(uniworld, write, graphs, fake, monkeypatch):
    monkeypatch.setattr(prompt_run, "_FIRST_PAUSE", 0.02)
    tries = []

    async def drop(request):
        tries.append(1)
        if len(tries) == 1:
            await request.read()
            request.transport.close()
            return web.Response()
        return None

    fake.fail["/prompt"] = drop
    assert uniworld("run", write(graphs["say"]), "--server", fake.url)[:2] == (0, "Say: hello\n")
    assert (len(tries), len(fake.posted)) == (2, 1)


def test_a_full_queue_is_asked_again(uniworld, write, graphs, fake, monkeypatch):
    monkeypatch.setattr(prompt_run, "_FIRST_PAUSE", 0.02)
    tries = []

    def full(request):
        tries.append(1)
        error = {"error": {"type": "queue_full", "message": "1000 prompts wait."}}
        return web.json_response(error, status=429) if len(tries) < 4 else None

    fake.fail["/prompt"] = full
    code, out, err = uniworld("run", write(graphs["say"]), "--server", fake.url)
    assert (code, out, len(tries)) == (0, "Say: hello\n", 4)
    assert err.count("1000 prompts wait.") == 1


def test_a_server_that_chooses_ids_itself_and_keeps_no_history(uniworld, write, graphs, fake, monkeypatch):
    monkeypatch.setattr(prompt_run, "_CONFIRM", 0.2)
    fake.takes_ids = False
    assert uniworld("run", write(graphs["say"]), "--server", fake.url)[:2] == (0, "Say: hello\n")
    fake.takes_ids, fake.keeps_history = True, False
    assert uniworld("run", write(graphs["say"]), "--server", fake.url)[:2] == (0, "Say: hello\n")


def test_a_server_that_dies_and_comes_back_without_the_prompt(uniworld, write, graphs, fake, when, monkeypatch):
    monkeypatch.setattr(prompt_run, "COLD_POLL", 0.05)

    def again() -> None:
        fake.die()
        fake.start()

    when(lambda: fake.running, again)
    code, _, err = uniworld("run", write(graphs["wait"]), "--server", fake.url)
    assert code == 1
    assert "does not know the prompt" in err


def test_a_server_that_stays_away_is_given_up(uniworld, write, graphs, fake, when, monkeypatch):
    monkeypatch.setattr(prompt_run, "COLD_POLL", 0.05)
    monkeypatch.setattr(prompt_run, "PATIENCE", 0.3)
    when(lambda: fake.running, fake.die)
    code, _, err = uniworld("run", write(graphs["wait"]), "--server", fake.url)
    assert code == 1
    assert "Retrying for 0 seconds." in err
    assert "cannot be reached: connection refused." in err.splitlines()[-1]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@posix_only
def test_ctrl_c_interrupts_the_run_of_this_prompt(uniworld, write, graphs, fake, when):
    when(lambda: fake.running, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, out, err = uniworld("run", write(graphs["wait"]), "--server", fake.url, "--json")
    assert code == 1
    assert fake.interrupted == [{"prompt_id": fake.posted[0]["prompt_id"]}]
    found = events(out)
    assert [one["event"] for one in found[-2:]] == ["execution_interrupted", "result"]
    assert (found[-1]["status"], found[-1]["message"]) == ("interrupted", "The run was interrupted.")
    assert err.splitlines()[-1] == "The run was interrupted."


@posix_only
def test_ctrl_c_takes_a_waiting_prompt_out_of_the_queue_and_leaves_others(uniworld, write, graphs, fake, when):
    other = [0, "other", graphs["wait"], "somebody", []]
    fake.waiting.append(other)
    when(lambda: fake.posted and fake.running, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, _, err = uniworld("run", write(graphs["say"]), "--server", fake.url)
    assert (code, err.splitlines()[-1]) == (1, "The run was interrupted.")
    assert fake.deleted == [fake.posted[0]["prompt_id"]]
    assert (fake.interrupted, fake.running) == ([], other)


@posix_only
def test_ctrl_c_does_not_wait_for_ever_for_a_server_that_hangs(uniworld, write, graphs, fake, when, monkeypatch):
    monkeypatch.setattr(prompt_run, "STOP_SECONDS", 0.3)
    fake.fail["/interrupt"] = lambda request: web.Response()
    when(lambda: fake.running, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, _, err = uniworld("run", write(graphs["wait"]), "--server", fake.url)
    assert code == 1
    assert err.splitlines()[-1] == f"The run was interrupted. The server {fake.url} has not confirmed it."


# --- files ------------------------------------------------------------------------------------------------------------


def test_pictures_are_uploaded_under_names_of_their_content(uniworld, write, fake, tmp_path):
    (tmp_path / "input" / "masks").mkdir(parents=True)
    Image.new("RGBA", (5, 5)).save(tmp_path / "input" / "masks" / "mask 1.PNG")
    Image.new("RGB", (5, 5)).save(tmp_path / "photo.jpg")
    prompt = {
        "1": node("LoadImage", image="masks/mask 1.PNG [input]"), "2": node("LoadImage", image="x.png"),
        "3": node("LoadImage", image="there.png"), "4": node("SaveImage", images=["1", 0], filename_prefix="p"),
        "5": node("SaveImage", images=["2", 0], filename_prefix="p"), "6": node("SaveImage", images=["3", 0], filename_prefix="p"),
    }  # fmt: skip
    assert uniworld("run", write(prompt), "--server", fake.url, "--image", "2=photo.jpg")[0] == 0
    sent = fake.posted[0]["prompt"]
    first, second, third = (sent[node_id]["inputs"]["image"] for node_id in "123")
    assert first.startswith("masks/mask_1-")
    assert first.endswith(".PNG")
    assert second.startswith("photo-")
    assert third == "there.png"  # it is not here, and the server has it
    assert (
        fake.files["input", "masks", first.removeprefix("masks/")]
        == (tmp_path / "input" / "masks" / "mask 1.PNG").read_bytes()
    )
    assert fake.files["input", "", second] == (tmp_path / "photo.jpg").read_bytes()


def test_the_graph_in_the_picture_names_the_uploaded_file(uniworld, write, fake, tmp_path):
    (tmp_path / "input").mkdir(exist_ok=True)
    Image.new("RGB", (5, 5)).save(tmp_path / "input" / "cat.png")
    graph = {
        "nodes": [
            {"id": 1, "type": "LoadImage", "widgets_values": ["cat.png", "image"], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]},
            {"id": 2, "type": "SaveImage", "widgets_values": ["p"], "inputs": [{"name": "images", "type": "IMAGE", "link": 1}]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }  # fmt: skip
    assert uniworld("run", write(graph), "--server", fake.url)[0] == 0
    body = fake.posted[0]
    name = body["prompt"]["1"]["inputs"]["image"]
    assert name.startswith("cat-")
    assert body["extra_data"]["extra_pnginfo"]["workflow"]["nodes"][0]["widgets_values"][0] == name


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_file_that_is_nowhere_is_exit_code_2(uniworld, write, graphs, fake, command):
    code, _, err = uniworld(command, write(graphs["load"]), "--server", fake.url)
    out = err if command == "run" else _
    assert code == 2
    assert f"the file 'cat.png' is neither in 'input' nor on the server {fake.url}" in out
    assert fake.posted == []


@pytest.mark.parametrize("name", ["../cat.png", "/etc/passwd", "a/../../cat.png [output]"])
def test_a_file_name_that_is_a_trick_is_exit_code_2(uniworld, write, graphs, fake, name):
    graphs["load"]["1"]["inputs"]["image"] = name
    code, _, err = uniworld("run", write(graphs["load"]), "--server", fake.url)
    assert code == 2
    assert "Node 1 (LoadImage)" in err
    assert not [path for path, _ in fake.headers if path in ("/view", "/prompt")]


def test_a_file_that_is_no_picture_is_not_uploaded_as_one(uniworld, write, graphs, fake, tmp_path):
    (tmp_path / "input").mkdir(exist_ok=True)
    (tmp_path / "input" / "cat.png").write_text("no picture")
    code, _, err = uniworld("run", write(graphs["load"]), "--server", fake.url)
    assert code == 2
    assert "cat.png" in err
    assert not [path for path, _ in fake.headers if path == "/upload/image"]


def test_other_files_of_the_input_folder_are_uploaded_too(uniworld, write, fake, tmp_path):
    (tmp_path / "input").mkdir(exist_ok=True)
    (tmp_path / "input" / "new.latent").write_bytes(b"latent")
    prompt = {
        "1": node("LoadLatent", latent="new.latent"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="p"),
    }
    assert uniworld("run", write(prompt), "--server", fake.url)[0] == 0
    assert fake.files["input", "", fake.posted[0]["prompt"]["1"]["inputs"]["latent"]] == b"latent"


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_queues_nothing_and_uploads_nothing(uniworld, write, graphs, fake, tmp_path):
    (tmp_path / "input").mkdir(exist_ok=True)
    Image.new("RGB", (5, 5)).save(tmp_path / "input" / "cat.png")
    code, out, _ = uniworld("check", write(graphs["load"]), "--server", fake.url)
    assert (code, out) == (0, "The workflow is valid: 2 nodes; output node: 2 (SaveImage).\n")
    assert {path for path, _ in fake.headers} == {"/object_info"}


@pytest.mark.parametrize(("changes", "said"), [
    ({"1": node("Sampler", name="eulr")}, "input 'name' is 'eulr', which is not one of its options"),
    ({"1": node("PackSampler", name="b")}, "is 'b', which is not one of its options"),
    ({"1": node("Picture", seed=101)}, "above its maximum of 100"), ({"1": node("Say", text="x")}, ""),
    ({"1": node("Nothing")}, "there is no node class 'Nothing'"), ({"1": node("Picture")}, "'seed'"),
])  # fmt: skip
def test_check_reads_the_servers_nodes(uniworld, write, fake, changes, said):
    prompt = {"2": node("SaveImage", images=["1", 0], filename_prefix="p"), **changes}
    code, out, _ = uniworld("check", write(prompt), "--server", fake.url)
    assert code == 2
    assert said in out


def test_what_a_packs_own_check_may_allow_is_left_to_the_server(uniworld, write, fake):
    prompt = {"1": node("PackSampler", name="b"), "2": node("SaveImage", images=["1", 0], filename_prefix="p")}
    assert uniworld("run", write(prompt), "--server", fake.url)[0] == 0
    prompt["1"] = node("Sampler", name="b")
    assert uniworld("run", write(prompt), "--server", fake.url)[0] == 2


def test_inputs_that_stand_for_several_are_not_missed(uniworld, write, fake):
    prompt = {
        "1": node("Picture", seed=1), "2": node("Join", **{"images.image0": ["1", 0], "images.image1": ["1", 0]}),
        "3": node("SaveImage", images=["2", 0], filename_prefix="p"),
    }  # fmt: skip
    code, out, _ = uniworld("check", write(prompt), "--server", fake.url)
    assert (code, out) == (0, "The workflow is valid: 3 nodes; output node: 3 (SaveImage).\n")


def test_prompts_old_ids_and_values_are_resolved_as_locally(uniworld, write, fake):
    fake.nodes["UniWorldFlowScheduler"] = fake.nodes["Picture"]
    graph = {
        "nodes": [
            {"id": 1, "type": "UniWorldScheduler", "widgets_values": [5, "fixed"]},
            {"id": 2, "type": "Say", "widgets_values": ["{red|blue} // comment"]},
        ],
        "links": [],
    }
    code, out, _ = uniworld("run", write(graph), "--server", fake.url, "--set", "1.seed=7", "--seed", "4")
    assert code == 0
    assert out in ("Say: red \n", "Say: blue \n")
    assert fake.posted[0]["prompt"]["1"]["class_type"] == "UniWorldFlowScheduler"
    assert fake.posted[0]["prompt"]["1"]["inputs"] == {"seed": 7}


@pytest.mark.parametrize("option", [["--pack", "x"], ["--models", "x"]])
def test_options_about_nodes_of_this_process_are_refused(uniworld, write, graphs, fake, option):
    code, _, err = uniworld("run", write(graphs["say"]), "--server", fake.url, *option)
    assert code == 2
    assert option[0] in err


# --- the token --------------------------------------------------------------------------------------------------------


def test_the_token_is_sent_with_every_request(uniworld, write, graphs, fake, monkeypatch):
    monkeypatch.setenv("UNIWORLD_TOKEN", "secret123")
    assert uniworld("run", write(graphs["picture"]), "--server", fake.url)[0] == 0
    assert {path for path, _ in fake.headers} >= {"/object_info", "/prompt", "/ws", "/view"}
    assert {headers.get("Authorization") for _, headers in fake.headers} == {"Bearer secret123"}


def test_a_redirect_takes_the_token_nowhere(uniworld, write, graphs, fake, make_fake, monkeypatch):
    monkeypatch.setenv("UNIWORLD_TOKEN", "secret123")
    other = make_fake()
    fake.fail["/object_info"] = lambda request: web.Response(
        status=307, headers={"Location": f"{other.url}/object_info"}
    )
    code, _, err = uniworld("run", write(graphs["say"]), "--server", fake.url)
    assert code == 2
    assert "Give that as --server." in err
    assert other.headers == []


@pytest.mark.parametrize(
    ("token", "said"), [("", "requires a token. Set UNIWORLD_TOKEN"), ("wrong", "does not accept the token")]
)
def test_a_wrong_token_is_exit_code_2(uniworld, write, graphs, fake, monkeypatch, token, said):
    monkeypatch.setenv("UNIWORLD_TOKEN", token)
    fake.fail["/object_info"] = lambda request: web.Response(status=401)
    code, _, err = uniworld("run", write(graphs["say"]), "--server", fake.url)
    assert code == 2
    assert said in err
    assert "wrong" not in err
