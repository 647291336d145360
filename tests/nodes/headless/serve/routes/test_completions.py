"""OpenAI's chat completions on nano: answers, streams, log-probabilities, errors and the queue."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import types
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.nodes import host
from uniworld.nodes.headless.serve.completions.answering import _Writer
from uniworld.nodes.headless.serve.completions.request import read_request
from uniworld.nodes.headless.storage import folders
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.qwen_files import read_tokenizer
from uniworld.uniworld_core.loading.shipped import shipped_model

from ..conftest import Live, config, frontend, registry, slow, wait_for  # noqa: F401

QUESTION = "What colour is the circle?"
SHAPES = folders.SHIPPED_INPUT / "shapes.png"


def data_url(path: Path = SHAPES) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def message(text: str = QUESTION, *urls: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls or (data_url(),)]
    return {"role": "user", "content": [{"type": "text", "text": text}, *pictures]}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "nano", "messages": [message()], "max_tokens": 8, **more}


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
    registry: Any,  # noqa: F811
    frontend: Path,  # noqa: F811
    unipic: Path,
    kontext_folder: Path,
) -> Iterator[Live]:
    """One server for the module, with nano, a UniPic and a FLUX.1 Kontext."""
    from uniworld.nodes.headless.serve.config import ServerConfig

    root = tmp_path_factory.mktemp("served")
    for name in ("input", "output", "temp"):
        (root / name).mkdir()
    for kind, folder in (("unipic", unipic), ("diffusers", kontext_folder)):
        (root / "models" / kind).mkdir(parents=True)
        (root / "models" / kind / folder.name).symlink_to(folder, target_is_directory=True)
    places = {name: root / name for name in ("models", "input", "output", "temp", "user")}
    before = folders.current()
    live = Live(ServerConfig(port=0, frontend=frontend, token="secret-token", **places), registry)
    yield live
    live.stop()
    folders.install(before)
    host.install(None)


@pytest.fixture
def ask(served: Live) -> Callable[..., Any]:
    def ask(path: str = "/v1/chat/completions", data: Any = None, token: str = "secret-token") -> Any:
        return served.ask(
            "POST" if data is not None else "GET", path, data, headers={"Authorization": f"Bearer {token}"}
        )

    return ask


@pytest.fixture(scope="module")
def expected() -> str:
    model = UniWorld.from_pretrained("nano")
    answer = model.understand(QUESTION, model.reference([Image.open(SHAPES).convert("RGB")], False), max_new_tokens=8)
    assert isinstance(answer, str)
    return answer


def events(reply: Any) -> list[Any]:
    lines = [line for line in reply.body.decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_the_answer_is_that_of_understand(ask: Callable[..., Any], expected: str) -> None:
    reply = ask(data=body())
    assert reply.status == 200
    choice = reply.json["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
    assert choice["finish_reason"] == "stop"
    usage = reply.json["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] >= 2
    assert ask(data=body(max_tokens=1)).json["choices"][0]["finish_reason"] == "length"


def test_a_stream_has_the_same_text(ask: Callable[..., Any], expected: str) -> None:
    reply = ask(data=body(stream=True, stream_options={"include_usage": True}))
    assert reply.headers["content-type"] == "text/event-stream"
    found = events(reply)
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in found[:-1]) == expected
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-1]["usage"]["completion_tokens"] >= 2


def test_log_probabilities_are_normalized_and_sorted(ask: Callable[..., Any], expected: str) -> None:
    choice = ask(data=body(logprobs=True, top_logprobs=5)).json["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in tokens).decode() == expected
    for one in tokens:
        values = [other["logprob"] for other in one["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0001
        assert one["logprob"] == pytest.approx(values[0])  # greedy
    streamed = events(ask(data=body(logprobs=True, stream=True)))
    again = [one["choices"][0]["logprobs"]["content"][0] for one in streamed if one["choices"][0]["logprobs"]]
    assert [one["logprob"] for one in again] == pytest.approx([one["logprob"] for one in tokens])


def test_the_bytes_of_tokens_are_those_of_the_answer() -> None:
    tokenizer = read_tokenizer(shipped_model("nano").checkpoint)  # type: ignore[union-attr]
    request = read_request({"model": "nano", "messages": [message()], "logprobs": True, "top_logprobs": 1})
    text, emitted = "添加 café 😀", list[Any]()
    writer = _Writer(tokenizer, request, types.SimpleNamespace(check_interrupt=lambda: None), emitted.append)  # type: ignore[arg-type]
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        writer.add(token, torch.zeros(len(tokenizer)))
    writer.finish()
    assert "".join(one.text for one in emitted) == text
    assert b"".join(one.token.data for one in emitted if one.token).decode() == text
    assert writer._choice(tokenizer.convert_tokens_to_ids("<|vision_start|>"), 0.0).data == b"<|vision_start|>"


def test_a_stop_text_ends_the_answer_before_it(ask: Callable[..., Any], expected: str) -> None:
    stop = expected[1:3]
    choice = ask(data=body(stop=[stop])).json["choices"][0]
    assert choice["message"]["content"] == expected[:1]
    assert choice["finish_reason"] == "stop"
    found = events(ask(data=body(stop=stop, stream=True)))
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in found) == expected[:1]


def test_sampling_depends_on_the_seed_only(ask: Callable[..., Any]) -> None:
    first, second = (ask(data=body(temperature=1.5, seed=7)).json["choices"] for _ in range(2))
    assert first == second


def test_a_conversation_and_a_system_message(ask: Callable[..., Any]) -> None:
    turns = [
        {"role": "system", "content": "Answer briefly."},
        message(),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "How many circles are there?"},
    ]
    assert ask(data=body(messages=turns)).status == 200


@pytest.mark.parametrize(
    ("change", "param", "part"),
    [
        ({"messages": [message(QUESTION, "http://127.0.0.1:1/secret.png")]}, "messages[0]", "must be data URLs"),
        ({"messages": [message(QUESTION, "file:///etc/passwd")]}, "messages[0]", "must be data URLs"),
        ({"messages": [message(QUESTION, "data:image/png;base64,@@@")]}, "messages[0]", "not valid base64"),
        ({"messages": [message(QUESTION, "data:image/png;base64,aGVsbG8=")]}, "messages", "picture"),
        ({"messages": [message(QUESTION, data_url()[:-400])]}, "messages", "truncated or damaged"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "must be a list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "must have a role"),
        ({"messages": [{**message(), "role": "system"}, message()]}, "messages[0]", "may only have text"),
        ({"messages": [message(), {"role": "assistant", "content": "x"}]}, "messages", "must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0]", "neither text nor"),
        ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, None, "<|im_end|>"),
        ({"n": 2}, "n", "not supported"),
        ({"top_p": 0.5}, "top_p", "not supported"),
        ({"tools": [{}]}, "tools", "not supported"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "not supported"),
        ({"guided_choice": ["yes", "no"]}, "guided_choice", "not supported"),
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"temperature": 10**400}, "temperature", "from 0 to 2"),
        ({"temperature": True}, "temperature", "from 0 to 2"),
        ({"max_tokens": 0}, "max_tokens", "from 1 to 16384"),
        ({"stop": [""]}, "stop", "up to 4 texts"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"top_logprobs": 3}, "top_logprobs", "needs 'logprobs'"),
        ({"model": ""}, "model", "name of a checkpoint"),
    ],
)
def test_invalid_requests_are_errors_in_openais_form(
    ask: Callable[..., Any], change: dict[str, Any], param: str | None, part: str
) -> None:
    reply = ask(data=body(**change))
    assert reply.status == 400
    error = reply.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert part in error["message"]


def test_unknown_models_and_wrong_tokens_have_openais_form(ask: Callable[..., Any]) -> None:
    reply = ask(data=body(model="gpt-4o"))
    assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
    reply = ask(data=body(), token="wrong-token")
    assert (reply.status, reply.json["error"]["type"]) == (401, "authentication_error")
    assert reply.json["error"].keys() == {"message", "type", "param", "code"}
    assert reply.headers["www-authenticate"] == "Bearer"


def test_data_urls_are_read_as_browsers_read_them() -> None:
    data = bytes(range(256)) * 2
    text = base64.b64encode(data).decode()
    for url in (
        f"DATA:image/PNG;Base64,{text}",
        f"data:image/png;charset=utf-8;base64,{text.rstrip('=')}",
        f"data:;base64,{base64.encodebytes(data).decode()}",
        f"data:image/png;base64,{urllib.parse.quote(text, safe='')}",
    ):
        request = read_request({"model": "nano", "messages": [message(QUESTION, url)], "top_k": -1, "min_p": 0.0})
        assert request.turns[0].pictures == (data,)


def test_an_answer_may_be_long() -> None:
    asked = {"model": "nano", "messages": [message()]}
    assert read_request(asked).max_tokens == 1024
    assert read_request({**asked, "max_tokens": 10240}).max_tokens == 10240  # by UniSandbox's questions


def test_no_system_message_is_dropped() -> None:
    system, user = {"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "How many?"}
    answer = {"role": "assistant", "content": "Two."}
    for messages, texts in (
        ([system, user], ["Answer briefly.\nHow many?"]),
        ([user, system], ["How many?\nAnswer briefly."]),
        ([user, system, answer, user, system], ["How many?", "Two.", "Answer briefly.\nHow many?\nAnswer briefly."]),
    ):
        assert [turn.text for turn in read_request({"model": "nano", "messages": messages}).turns] == texts


def test_unknown_paths_and_methods_have_openais_form(served: Live) -> None:
    for method, path, status, allowed in (
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models", 405, "GET,HEAD"),
        ("POST", "/v1/completions", 404, None),
        ("GET", "/v1/embeddings", 404, None),
    ):
        reply = served.ask(method, path, headers={"Authorization": "Bearer secret-token"})
        assert (reply.status, reply.headers.get("allow")) == (status, allowed)
        assert reply.json["error"].keys() == {"message", "type", "param", "code"}
        assert reply.json["error"]["type"] == "invalid_request_error"


def test_unipic_answers_as_understand_does(ask: Callable[..., Any], unipic: Path) -> None:
    model = UniWorld.from_pretrained(unipic, dtype=torch.float32)
    expected = model.understand(QUESTION, model.reference([Image.open(SHAPES)]), max_new_tokens=4)
    asked = body(model="unipic", max_tokens=4)
    reply = ask(data=asked)
    assert reply.status == 200
    choice, usage = reply.json["choices"][0], reply.json["usage"]
    assert choice["message"]["content"] == expected
    assert choice["finish_reason"] == "length"
    assert (usage["completion_tokens"], usage["prompt_tokens"] > 16) == (4, True)  # 16 tokens of the picture
    streamed = events(ask(data={**asked, "stream": True, "logprobs": True, "top_logprobs": 2}))
    tokens = [one["choices"][0]["logprobs"]["content"][0] for one in streamed if one["choices"][0]["logprobs"]]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in streamed) == expected
    assert len(tokens) == 4
    assert all(one["logprob"] == pytest.approx(one["top_logprobs"][0]["logprob"]) for one in tokens)
    # Without a picture, and with the text of a system message.
    turns = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Why?"}]
    plain = ask(data={**asked, "messages": turns}).json["choices"][0]["message"]["content"]
    assert plain == model.understand("Answer briefly.\nWhy?", max_new_tokens=4)
    varied = [ask(data={**asked, "temperature": 2, "seed": seed}).json["choices"] for seed in (1, 1, 2)]
    assert varied[0] == varied[1]


def test_what_a_model_cannot_do_is_an_error_in_openais_form(ask: Callable[..., Any]) -> None:
    listed = [one["id"] for one in ask("/v1/models").json["data"]]
    assert {"nano", "unipic"} <= set(listed)
    assert "FLUX.1-Kontext-dev" not in listed  # it only paints
    turns = [message(), {"role": "assistant", "content": "red"}, {"role": "user", "content": "Why?"}]
    for changes, param, part in (
        (
            {"model": "FLUX.1-Kontext-dev"},
            "model",
            "of FLUX.1 Kontext only paints and cannot answer. The models that answer",
        ),
        ({"model": "unipic", "messages": turns}, None, "The conversation has 3 turns, and UniPic reads one"),
        (
            {"model": "unipic", "messages": [message(QUESTION, data_url(), data_url())]},
            None,
            "has 2 pictures, and UniPic",
        ),
        ({"model": "unipic", "messages": [message("a <image>")]}, None, "The prompt contains <image>"),
    ):
        reply = ask(data=body(**changes))
        assert reply.status == 400
        error = reply.json["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert part in error["message"]


def test_openais_own_client_understands_the_server(served: Live, expected: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="secret-token", max_retries=0)
    with client:
        whole = client.chat.completions.create(**body())
        assert whole.choices[0].message.content == expected
        chunks = client.chat.completions.create(**body(stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        with pytest.raises(openai.BadRequestError, match="not supported"):
            client.chat.completions.create(**body(n=3))
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**body(model="other"))
        listed = client.models.list().data
        assert client.models.retrieve("nano") == next(one for one in listed if one.id == "nano")
        with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
            client.models.retrieve("other")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="only paints"):
            client.models.retrieve("FLUX.1-Kontext-dev")


def test_requests_and_prompts_share_the_queue(served: Live, ask: Callable[..., Any], expected: str) -> None:
    head = {"Authorization": "Bearer secret-token"}
    running = served.post("/prompt", {"prompt": slow(100)}, headers=head).json["prompt_id"]
    wait_for(lambda: served.server.worker.run)
    replies: list[Any] = []
    threads = [threading.Thread(target=lambda: replies.append(ask(data=body()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: served.server.worker.waiting_calls == 3)
    assert not replies
    served.post("/interrupt", {"prompt_id": running}, headers=head)
    for thread in threads:
        thread.join(30)
    assert [reply.json["choices"][0]["message"]["content"] for reply in replies] == [expected] * 3


def test_a_client_that_leaves_frees_its_place(served: Live) -> None:
    import http.client

    head = {"Authorization": "Bearer secret-token", "Content-Type": "application/json"}
    running = served.post("/prompt", {"prompt": slow(1000)}, headers=head).json["prompt_id"]
    wait_for(lambda: served.server.worker.run)
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body()), head)
    wait_for(lambda: served.server.worker.waiting_calls == 1)
    connection.close()
    wait_for(lambda: served.server.worker.waiting_calls == 0)
    served.post("/interrupt", {"prompt_id": running}, headers=head)


def test_a_picture_that_is_transparent_or_turned_is_read(ask: Callable[..., Any]) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (40, 20), (255, 0, 0, 0)).save(file, "WEBP")
    url = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    assert ask(data=body(messages=[message(QUESTION, url)])).status == 200
