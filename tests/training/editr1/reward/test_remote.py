"""Remote rewards: our own server and OpenAI's API, with servers that hang, break off, or answer garbage."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image
from uniworld.training.editr1.reward.protocol import RewardFailure, RewardItem, Score
from uniworld.training.editr1.reward.remote import OpenAIReward, RemoteReward
from uniworld.training.editr1.reward.requests import RetryPolicy
from uniworld.training.editr1.reward.serve import reward_app
from uniworld.training.editr1.reward.wire import decode_items, encode_items
from uniworld.uniworld_core.errors import UniWorldError

web = pytest.importorskip("aiohttp.web")

QUICK = RetryPolicy(timeout=0.5, attempts=3, wait=0.01)
ONCE = RetryPolicy(timeout=0.3, attempts=1)


def item(level: int = 255, prompt: str = "Make it {red}.") -> RewardItem:
    references = (Image.new("RGB", (6, 4), "blue"), Image.new("RGB", (3, 3), "green"))
    return RewardItem(prompt, references, Image.new("RGB", (5, 7), (level, 0, 0)), "é stays", task=object())


class Redness:
    """Scores the red of a picture's corner; 1 is a failure, and 2 an exception."""

    name = "redness"

    def __init__(self) -> None:
        self.seen: list[RewardItem] = []

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        self.seen += items
        levels = [one.picture.getpixel((0, 0))[0] for one in items]  # type: ignore[index]
        if 2 in levels:
            raise RuntimeError("worker lost")
        return [RewardFailure("no judge") if level == 1 else level / 255 for level in levels]

    def close(self) -> None:
        pass


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Run an aiohttp application in a thread; yields its URL."""
    loop, ready, address = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> Any:
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(runner.addresses[0][1])
        ready.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{address[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


Handler = Callable[[Any], Awaitable[Any]]


def answering(handler: Handler) -> Any:
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", handler)
    return app


# --- our own server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return []


@pytest.fixture(scope="module")
def judged() -> Redness:
    return Redness()


@pytest.fixture(scope="module")
def server(reports: list[str], judged: Redness) -> Iterator[str]:
    with serving(reward_app(judged, "secret-token", reports.append)) as url:
        yield url


def test_items_arrive_as_they_were_sent(server: str, judged: Redness) -> None:
    reward = RemoteReward(server, "secret-token", batch=2, parallel=2)
    reward.check()
    judged.seen.clear()
    scores = reward.score([item(255), item(0), item(51), item(1)])
    assert scores[:3] == [1.0, 0.0, 0.2]
    assert isinstance(scores[3], RewardFailure)
    assert "no judge" in scores[3].reason
    sent, got = item(255), next(one for one in judged.seen if one.picture.getpixel((0, 0)) == (255, 0, 0))
    assert (got.prompt, got.requirement, got.task) == (sent.prompt, sent.requirement, None)
    assert [one.tobytes() for one in (*got.references, got.picture)] == [
        one.tobytes() for one in (*sent.references, sent.picture)
    ]
    assert reward.score([]) == []


def test_scoring_works_inside_a_running_loop(server: str) -> None:
    async def main() -> list[Score]:
        return RemoteReward(server, "secret-token").score([item(51)])

    assert asyncio.run(main()) == [0.2]


def test_a_crash_of_the_reward_is_a_counted_failure(server: str, reports: list[str]) -> None:
    scores = RemoteReward(server, "secret-token", QUICK, batch=1).score([item(2), item(255)])
    assert isinstance(scores[0], RewardFailure)
    assert "worker lost" in scores[0].reason
    assert scores[1] == 1.0
    assert sum("worker lost" in report for report in reports) == 3


def test_a_wrong_token_ends_the_run(server: str) -> None:
    for token in (None, "other-token"):
        with pytest.raises(UniWorldError, match="rejects the token: set UNIWORLD_REWARD_TOKEN"):
            RemoteReward(server, token, QUICK).score([item()])


def test_a_token_of_any_bytes_is_wrong(server: str) -> None:
    host, _, port = server.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        request = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xe9\r\n\r\n"
        connection.sendall(request)
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x80\x04K\x01.", "The body is not"),  # a pickle
        (b"{}", "no list `items`"),
        (b'{"items": []}', "no list `items`"),
        (json.dumps({"items": [{}] * 65}).encode(), "of 1 to 64 items"),
        (b'{"items": [3]}', "Item 0 is 3"),
        (b'{"items": [{"prompt": 3, "picture": ""}]}', "Item 0 has prompt 3"),
        (b'{"items": [{"prompt": "x"}]}', "Item 0, picture is None; it must be a PNG file in base64"),
        (b'{"items": [{"prompt": "x", "picture": "%%"}]}', "must be a PNG file in base64"),
        (b'{"items": [{"prompt": "x", "picture": "aGVsbG8="}]}', "Item 0, picture"),
        (b'{"items": [{"prompt": "x", "references": "y"}]}', "has references 'y'"),
    ],
)
def test_bodies_that_are_no_requests_are_rejected(body: bytes, message: str) -> None:
    with pytest.raises(UniWorldError, match=message):
        decode_items(body)


def test_pictures_of_other_formats_and_bombs_are_rejected() -> None:
    import base64
    import io

    for picture, kind in ((Image.new("RGB", (8, 8)), "JPEG"), (Image.new("1", (5000, 5000)), "PNG")):
        file = io.BytesIO()
        picture.save(file, kind)
        body = encode_items([item()])
        body["items"][0]["picture"] = base64.b64encode(file.getvalue()).decode()
        wanted = r"Item 0, picture.* Use PNG\.$" if kind == "JPEG" else "Item 0, picture.* is too large"
        with pytest.raises(UniWorldError, match=wanted):
            decode_items(json.dumps(body).encode())


# --- servers that do not behave ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"scores": [0.5]}, "1 scores for 2 pictures"),
        ({"scores": [0.5, 0.5, 0.5]}, "3 scores for 2 pictures"),
        ({"scores": "high"}, "no list `scores`"),
        ([0.5, 0.5], "no list `scores`"),
        ("garbage", "no list `scores`"),
        (b"<html>", "is not valid JSON"),
        (b'{"scores": [NaN, 1]}', "NaN"),
        (b"\x80\x04K\x01.", "is not"),
        ({"scores": [True, "0.5"]}, "not a number from 0 to 1"),
        ({"scores": [1.5, -0.1]}, "not a number from 0 to 1"),
        (b" " * (2**22 + 1), "more than 4194304 bytes"),
    ],
)
def test_garbage_is_a_failure_of_its_items(answer: object, reason: str) -> None:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    async def handler(_: Any) -> Any:
        return web.Response(body=data)

    with serving(answering(handler)) as url:
        scores = RemoteReward(url, policy=QUICK).score([item(), item()])
    assert len(scores) == 2
    for score in scores:
        assert isinstance(score, RewardFailure)
        assert reason in score.reason


@pytest.mark.parametrize("asked", ["\u00b2", "soon", "-1"])
def test_a_strange_time_to_wait_is_ignored(asked: str) -> None:
    async def handler(_: Any) -> Any:
        return web.Response(status=503, headers={"Retry-After": asked})

    with serving(answering(handler)) as url:
        (score,) = RemoteReward(url, policy=QUICK).score([item()])
    assert isinstance(score, RewardFailure)


@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (500, 3), (429, 3), (413, 1), (400, 1)])
def test_attempts_are_bounded_and_only_for_what_may_pass(status: int, attempts: int) -> None:
    count = 0

    async def handler(_: Any) -> Any:
        nonlocal count
        count += 1
        return web.Response(status=status, text="no")

    with serving(answering(handler)) as url:
        scores = RemoteReward(url, policy=QUICK).score([item()])
    assert isinstance(scores[0], RewardFailure)
    assert f"HTTP {status}" in scores[0].reason
    assert count == attempts


def test_a_passing_failure_passes() -> None:
    count = 0

    async def handler(_: Any) -> Any:
        nonlocal count
        count += 1
        return web.json_response({"scores": [0.25]}) if count == 3 else web.Response(status=503)

    with serving(answering(handler)) as url:
        assert RemoteReward(url, policy=QUICK).score([item()]) == [0.25]


def test_a_server_that_hangs_or_drips_costs_the_timeout() -> None:
    async def handler(request: Any) -> Any:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    with serving(answering(handler)) as url:
        started = time.monotonic()
        scores = RemoteReward(url, policy=ONCE).score([item()])
    assert time.monotonic() - started < 3
    assert isinstance(scores[0], RewardFailure)
    assert "no answer within 0.3 s" in scores[0].reason


def test_a_server_that_is_not_there() -> None:
    url = "http://127.0.0.1:9"
    (score,) = RemoteReward(url, policy=QUICK).score([item()])
    assert isinstance(score, RewardFailure)
    assert "no answer after 3 attempts" in score.reason
    with pytest.raises(UniWorldError, match=r"does not answer .* start `uniworld reward serve`"):
        RemoteReward(url, policy=ONCE).check()


def test_a_server_with_the_api_of_openai_is_asked_for_its_models(recwarn: pytest.WarningsRecorder) -> None:
    def reward(url: str) -> OpenAIReward:
        return OpenAIReward(url, "judge", policy=ONCE)

    with pytest.raises(UniWorldError, match=r"does not answer .* correct reward\.url"):
        reward("http://127.0.0.1:9").check()

    def listing(status: int, text: str) -> Any:
        async def answer(request: Any) -> Any:
            assert request.path == "/v1/models"
            return web.Response(status=status, text=text, content_type="application/json")

        return answering(answer)

    usable = (
        (404, ""),
        (405, ""),
        (501, ""),
        (200, "<html>"),
        (200, '{"data": 3}'),
        (200, '{"data": [{"id": "judge"}]}'),
    )
    for status, text in usable:
        with serving(listing(status, text)) as url:
            reward(url).check()
    assert not [one for one in recwarn if "does not list" in str(one.message)]
    with (
        serving(listing(200, '{"data": [{"id": "other"}]}')) as url,
        pytest.warns(UserWarning, match="does not list the model 'judge', but 'other'"),
    ):
        reward(url).check()
    with serving(listing(401, "")) as url, pytest.raises(UniWorldError, match="rejects the token"):
        reward(url).check()


def test_another_server_ends_the_run() -> None:
    async def moved(_: Any) -> Any:
        raise web.HTTPFound("http://127.0.0.1:9/elsewhere")

    async def absent(_: Any) -> Any:
        return web.Response(status=404)

    for handler in (moved, absent):
        with serving(answering(handler)) as url, pytest.raises(UniWorldError, match="is not there"):
            RemoteReward(url, "secret-token", QUICK).score([item()])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host", "is not an address"),
        ("host:8190", "is not an address"),
        ("http://", "is not an address"),
        ("http://host:x", "is not an address"),
        ("http://me:secret@host", "has a user name"),
        ("http://host/?token=secret", "has a user name, a query"),
    ],
)
def test_addresses_are_checked_and_secrets_not_repeated(url: str, message: str) -> None:
    with pytest.raises(UniWorldError, match=message) as error:
        RemoteReward(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("token", ["secret\n", "secret\r\nX: y", "s\u00e9cret"])
def test_a_token_that_no_header_can_have_is_an_error(token: str) -> None:
    with pytest.raises(UniWorldError, match="no header can have"):
        RemoteReward("http://127.0.0.1:1", token)


def test_a_token_without_encryption_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="without encryption"):
        RemoteReward("http://host.example", "secret-token")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RemoteReward("http://h", batch=0),
        lambda: RemoteReward("http://h", parallel=0),
        lambda: RetryPolicy(attempts=0),
        lambda: RetryPolicy(timeout=0),
        lambda: OpenAIReward("http://h", "m", top=5),
    ],
)
def test_numbers_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(UniWorldError):
        make()


# --- OpenAI's API -----------------------------------------------------------------------------------------------------

# The form of vLLM's answers (0.9 to 0.11): fields beyond OpenAI's are null, and tokens have their bytes.
TOP = [("5", -0.31), ("4", -1.42), ("3", -4.17), ("2", -6.9), ("1", -8.6), ("0", -8.9), ("Five", -11.5), ("5", -15.2)]
VLLM = {
    "id": "chatcmpl-7d1e0c6ab1f14e7bb5a30a9cf8a1c3b2",
    "object": "chat.completion",
    "created": 1760520000,
    "model": "Qwen/Qwen2.5-VL-32B-Instruct",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "5",
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "tool_calls": [],
                "reasoning_content": None,
            },
            "logprobs": {
                "content": [
                    {
                        "token": "5",
                        "logprob": -0.31,
                        "bytes": [53],
                        "top_logprobs": [
                            {"token": token, "logprob": logprob, "bytes": list(token.encode())}
                            for token, logprob in TOP
                        ],
                    }
                ]
            },
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": None,
        }
    ],
    "service_tier": None,
    "system_fingerprint": None,
    "usage": {"prompt_tokens": 812, "total_tokens": 813, "completion_tokens": 1, "prompt_tokens_details": None},
    "prompt_logprobs": None,
    "prompt_token_ids": None,
    "kv_transfer_params": None,
}


def test_the_score_is_in_the_likeliest_tokens_of_vllm() -> None:
    asked: list[Any] = []

    async def handler(request: Any) -> Any:
        asked.append((request.path, request.headers.get("Authorization"), await request.json()))
        return web.json_response(VLLM)

    with serving(answering(handler)) as url:
        (score,) = OpenAIReward(url, "judge", "api-key-1", policy=QUICK).score([item()])
    import math

    shares = {token: math.exp(logprob) for token, logprob in reversed(TOP) if token in "012345"}
    expected = sum(int(token) * share for token, share in shares.items()) / sum(shares.values()) / 5
    assert score == pytest.approx(expected, rel=1e-12)
    ((path, key, body),) = asked
    assert (path, key) == ("/v1/chat/completions", "Bearer api-key-1")
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url"] * 3 + ["text"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "Make it {red}." in message["content"][-1]["text"]


def without_logprobs() -> dict[str, Any]:
    return {**VLLM, "choices": [{**VLLM["choices"][0], "logprobs": None}]}  # type: ignore[index]


def with_top(*top: tuple[str, Any]) -> dict[str, Any]:
    listed = [{"token": token, "logprob": logprob} for token, logprob in top]
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (without_logprobs(), "must support `top_logprobs`"),
        ({"choices": []}, "must support `top_logprobs`"),
        (with_top(), "list of log-probabilities is empty"),
        (with_top(("<think>", -0.01), ("Sure", -5.0)), "none of the answers"),
        (with_top(("5", None)), "must support"),
        (with_top(("5", 3.0)), "above 0"),
        (with_top(("5", "high")), "must support"),
        (with_top(("5", -(10**400))), "must support"),
    ],
)
def test_answers_without_a_score_are_failures(answer: object, reason: str) -> None:
    async def handler(_: Any) -> Any:
        return web.json_response(answer)

    with serving(answering(handler)) as url:
        (score,) = OpenAIReward(url, "judge", policy=QUICK).score([item()])
    assert isinstance(score, RewardFailure)
    assert reason in score.reason
