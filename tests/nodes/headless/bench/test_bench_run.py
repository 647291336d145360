"""A whole run of `uniworld bench` on pictures made elsewhere, with a judge that fails in every way."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from uniworld.__main__ import main
from uniworld.nodes.headless.bench import run_folder, statistics
from uniworld.nodes.headless.bench.items import hash_prompts
from uniworld.nodes.headless.bench.judging.ask import AskPicture
from uniworld.nodes.headless.bench.judging.http import MAX_BODY
from uniworld.nodes.headless.bench.judging.replies import Replies
from uniworld.nodes.headless.bench.judging.run import JudgeLimits
from uniworld.nodes.headless.bench.suites import imgedit as suites_imgedit
from uniworld.uniworld_core.errors import UniWorldError

from .fake_judge import KEY, Answer, FakeJudge, Request, serving
from .folders import imgedit, results

GOOD = "Brief reasoning: fine.\nPrompt Compliance: 4\nVisual Seamlessness: 3\nPhysical Fidelity: 5"
ITEMS = 6

Script = Callable[[Request], Answer]


def number_of(request: Request) -> int:
    return int(request.text.split("Edit ")[1].split(".")[0])


class Runner:
    """Runs `uniworld bench imgedit` on six items and their pictures."""

    def __init__(self, folder: Path, capsys: Any) -> None:
        self.folder, self.capsys, self.out = folder, capsys, folder / "run"
        self.items = imgedit(folder / "data", ITEMS)
        self.pictures = results(folder / "pictures", list(self.items))

    def arguments(self, fake: FakeJudge | None, *more: str) -> list[str]:
        judge = [] if fake is None else ["--judge", fake.url, "--judge-model", "gpt-4.1", "--retry-wait", "0.01"]
        places = ["--data", str(self.folder / "data"), "--pictures", str(self.pictures), "--out", str(self.out)]
        return ["bench", "imgedit", *places, *judge, *more]

    def __call__(self, fake: FakeJudge | None, *more: str) -> tuple[int, str, str]:
        return self.command(*self.arguments(fake, *more))

    def command(self, *arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = self.capsys.readouterr()
        assert "Traceback" not in out + err
        assert KEY not in out + err
        return code, out, err

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.out / "result.json").read_text())

    @property
    def replies(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "replies.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.chdir(tmp_path)
    yield Runner(tmp_path, capsys)
    for path in (tmp_path / "run").rglob("*.json*"):
        assert KEY not in path.read_text()


def test_good_replies_give_the_published_scores_and_a_second_run_asks_nothing(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        code, out, _ = bench(fake)
        assert code == 0
        assert len(fake.requests) == ITEMS
        first = fake.requests[0]
        assert first.text.endswith(f"Rate the edit.\nThe instruction was: Edit {number_of(first)}.\n")
        assert first.mimes == ["image/jpeg", "image/png"]
        assert [one.size for one in first.pictures] == [(24, 16), (20, 20)]
        assert "temperature" not in first.body
        assert len(first.body["messages"]) == 1
        assert bench(fake)[0] == 0
        assert len(fake.requests) == ITEMS
    assert "mean_of_types" in out
    table = bench.result["tables"]["published"]
    assert table["groups"] == {"add": {"score": 4.0}, "adjust": {"score": 4.0}, "remove": {"score": 4.0}}
    assert table["overall"] == {"mean_of_types": 4.0, "mean_of_items": 4.0}
    judge = bench.result["judge"]
    assert (judge["models"], judge["fingerprints"]) == (["gpt-4.1-2025-04-14"], ["fp_1"])
    assert bench.result["comparable"] == []  # the items are not the published ones
    assert (bench.out / "report.html").is_file()
    assert (bench.out / "sheet.png").is_file()


def test_the_steps_are_commands_of_their_own(bench: Runner) -> None:
    run = str(bench.out)
    places = ["--data", str(bench.folder / "data"), "--out", run]
    assert bench.command("bench", "plan", "imgedit", *places)[0] == 0
    assert bench.command("bench", "generate", run, "--pictures", str(bench.pictures))[0] == 0
    with serving(lambda request: Answer(GOOD)) as fake:
        judge = ["--judge", fake.url, "--judge-model", "gpt-4.1"]
        assert bench.command("bench", "judge", run, *judge)[0] == 0
    code, out, _ = bench.command("bench", "score", run)
    assert code == 0
    assert "mean_of_types" in out
    assert not (bench.out / "report.html").exists()
    assert bench.command("bench", "report", run)[0] == 0
    assert (bench.out / "report.html").is_file()


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=500),
        Answer(status=429, headers={"Retry-After": "0.05"}, error={"code": "rate_limit_exceeded"}),
        Answer(cut=True),
        Answer(raw="not JSON"),
        Answer(raw='{"choices": []}'),
    ],
    ids=["500", "429", "cut", "garbage", "empty"],
)
def test_a_passing_failure_is_waited_for_and_scores_nothing(bench: Runner, fault: Answer) -> None:
    seen: Counter[int] = Counter()

    def script(request: Request) -> Answer:
        seen[number_of(request)] += 1
        return fault if seen[number_of(request)] == 1 else Answer(GOOD)

    with serving(script) as fake:
        assert bench(fake)[0] == 0
    assert set(seen.values()) == {2}
    assert len(bench.replies) == ITEMS
    assert bench.result["tables"]["published"]["overall"]["mean_of_items"] == 4.0


def test_a_failure_that_stays_leaves_the_item_open_and_no_overall_score(bench: Runner) -> None:
    def script(request: Request) -> Answer:
        return Answer(status=500) if number_of(request) == 2 else Answer(GOOD)

    with serving(script) as fake:
        code, out, err = bench(fake)
        assert code == 1
        assert "status 500" in err
        assert "There is no overall score" in out
        table = bench.result["tables"]["published"]
        assert table["overall"] == {}
        assert table["counts"] == {"scored": ITEMS - 1, "unscored": 0, "open": 1, "missing": 0}
        assert "partial" in bench(fake, "--partial")[1]
    assert bench.result["tables"]["published"]["overall"]["mean_of_items"] == 4.0


def test_an_unreadable_reply_is_asked_again_twice_and_then_unscored(bench: Runner) -> None:
    def script(request: Request) -> Answer:
        return Answer("Ich kann das nicht bewerten. Score 5!" if number_of(request) == 2 else GOOD)

    with serving(script) as fake:
        assert bench(fake)[0] == 0
        assert bench(fake)[0] == 0
        assert Counter(number_of(one) for one in fake.requests)[2] == 3
        assert len(fake.requests) == ITEMS + 2
    table = bench.result["tables"]["published"]
    assert table["counts"]["unscored"] == 1
    assert table["overall"]["mean_of_items"] == 4.0


def test_a_refusal_is_recorded_and_not_asked_again(bench: Runner) -> None:
    def script(request: Request) -> Answer:
        if number_of(request) == 1:
            return Answer(None, message={"refusal": "I can't help with that."})
        if number_of(request) == 2:
            return Answer(status=400, error={"code": "content_filter", "message": "filtered"})
        return Answer(GOOD)

    with serving(script) as fake:
        assert bench(fake)[0] == 0
        assert bench(fake)[0] == 0
        assert len(fake.requests) == ITEMS
    assert bench.result["tables"]["strict"]["counts"]["unscored"] == 2
    reasons = {one["id"]: one["published"]["reason"] for one in bench.result["results"]}
    assert reasons["1"] == "the judge refused: I can't help with that."
    assert "content filter" in reasons["2"]


def test_a_rejected_parameter_is_omitted_once_and_named(bench: Runner) -> None:
    def script(request: Request) -> Answer:
        if "temperature" in request.body:
            error = {"param": "temperature", "message": "Unsupported value: 'temperature'", "code": "unsupported_value"}
            return Answer(status=400, error=error, wait=0.2)
        return Answer(GOOD, finish="length" if number_of(request) == 2 else "stop")

    with serving(script) as fake:
        code, out, err = bench(fake, "--temperature", "0", "--parallel", "4")
        assert code == 0
        asked = len(fake.requests)
        assert ITEMS < asked <= ITEMS + 4
        assert bench(fake, "--temperature", "0", "--scoring", "strict")[0] == 0
        assert len(fake.requests) == asked
    assert err.count("The judge rejects the parameter temperature") == 1
    said = "without temperature, which the server rejects; 1 of 6 replies were cut at the maximum length"
    assert f"judge: gpt-4.1; {said}; scoring: published" in out
    judge = bench.result["judge"]
    assert (judge["temperature"], judge["omitted"], judge["cut_replies"]) == (None, ["temperature"], 1)
    assert json.loads((bench.out / "judge.json").read_bytes())["omitted"] == ["temperature"]


@pytest.mark.parametrize(
    "error",
    [
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"], "msg": "Extra inputs"}]},
        {"message": "'temperature' does not support 0"},
    ],
    ids=["fastapi", "message"],
)
def test_a_rejected_parameter_is_not_sent_again_by_a_run_that_continues(bench: Runner, error: dict[str, Any]) -> None:
    def script(request: Request) -> Answer:
        if "temperature" in request.body:
            return Answer(status=422, error=error)
        return Answer(GOOD) if number_of(request) < 3 else Answer(status=400)

    with serving(script) as fake:
        assert bench(fake, "--temperature", "0", "--parallel", "1")[0] == 1
        assert sum("temperature" in one.body for one in fake.requests) == 1
        fake.requests.clear()
        fake.script = lambda request: Answer(GOOD)
        assert bench(fake, "--temperature", "0")[0] == 0
        assert not [one for one in fake.requests if "temperature" in one.body]
    assert bench.result["judge"]["omitted"] == ["temperature"]


def test_replies_of_several_models_are_named(bench: Runner) -> None:
    other = Answer(raw=_body(model="gpt-4.1-2026-01-01"))
    with serving(lambda request: other if number_of(request) == 1 else Answer(GOOD)) as fake:
        out = bench(fake)[1]
    assert "judge: gpt-4.1; the server names several models: gpt-4.1-2025-04-14, gpt-4.1-2026-01-01;" in out


def test_a_judge_without_a_reply_is_named(bench: Runner) -> None:
    with serving(lambda request: Answer(status=400)) as fake:
        code, out, _ = bench(fake)
    assert code == 1
    assert "judge: gpt-4.1; no reply is recorded" in out
    assert bench.result["judge"] is None


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Answer(status=401, error={"message": f"Incorrect API key provided: {KEY}"}), "Set OPENAI_API_KEY"),
        (Answer(status=429, error={"code": "insufficient_quota"}), "quota is exhausted"),
        (Answer(status=429, error={"code": "429", "type": "insufficient_quota"}), "quota is exhausted"),
        (Answer(status=402, error={"message": "Insufficient Balance"}), "quota is exhausted"),
        (Answer(status=400, error={"code": "billing_hard_limit_reached"}), "quota is exhausted"),
        (Answer(status=404, error={"code": "model_not_found"}), "knows no model 'gpt-4.1'"),
        (Answer(status=405), "usually ends in /v1"),
    ],
    ids=["key", "quota", "quota_by_type", "balance", "limit_of_billing", "model", "address"],
)
def test_a_failure_that_cannot_pass_stops_at_once(bench: Runner, fault: Answer, sentence: str) -> None:
    with serving(lambda request: fault) as fake:
        code, _, err = bench(fake, "--parallel", "1")
        assert code == 1
        assert sentence in err
        assert len(fake.requests) == 1
    assert not bench.replies
    # A run without a reply can be judged by another model.
    with serving(lambda request: Answer(GOOD)) as fake:
        assert bench(fake, "--judge-model", "gpt-4o")[0] == 0
    assert bench.result["judge"]["model"] == "gpt-4o"


def test_a_run_without_results_takes_other_settings(bench: Runner) -> None:
    (bench.folder / "wrong").mkdir()
    assert bench(None, "--limit", "2", "--pictures", str(bench.folder / "wrong"))[0] == 1
    assert bench.result["items"]["count"] == 2
    with serving(lambda request: Answer(GOOD)) as fake:
        assert bench(fake)[0] == 0
        assert bench(fake, "--limit", "2")[0] == 2


def test_pictures_that_cannot_be_read_are_no_failures_of_the_judge(
    bench: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Any:
        raise UniWorldError("The picture cannot be read.")

    monkeypatch.setattr(JudgeLimits, "__init__", partialmethod(JudgeLimits.__init__, tries=1, max_failures=2))
    monkeypatch.setattr(AskPicture, "data_url", fail)
    with serving(lambda request: Answer(GOOD)) as fake:
        code, out, err = bench(fake, "--parallel", "1")
    assert code == 1
    assert "6 open" in out
    assert "6 results could not be judged, such as 0/0: The picture cannot be read" in err
    assert "in a row" not in err


def test_another_process_at_work_keeps_its_plan(bench: Runner) -> None:
    assert bench(None)[0] == 1
    with Replies(bench.out / "replies.jsonl"):
        code, _, err = bench(None, "--limit", "2")
    assert code == 2
    assert "Another process is writing" in err
    assert bench.result["items"]["count"] == ITEMS


def test_a_removed_record_of_the_judge_is_written_again(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD) if number_of(request) else Answer(status=401)) as fake:
        assert bench(fake, "--parallel", "1")[0] == 1  # it stops at the first item
    with serving(lambda request: Answer(GOOD) if number_of(request) != 5 else Answer(status=401)) as fake:
        assert bench(fake, "--parallel", "1")[0] == 1
    settings = (bench.out / "judge.json").read_bytes()
    (bench.out / "judge.json").unlink()
    with serving(lambda request: Answer(status=401)) as fake:
        assert bench(fake, "--parallel", "1")[0] == 1
    assert json.loads((bench.out / "judge.json").read_bytes()).keys() == json.loads(settings).keys()
    assert bench.command("bench", "score", str(bench.out))[0] == 1
    assert bench.result["tables"]["published"]["counts"]["scored"] == ITEMS - 1


def test_rate_limits_without_end_stop_the_run(bench: Runner) -> None:
    with serving(lambda request: Answer(status=429, headers={"Retry-After": "0.02"})) as fake:
        code, _, err = bench(fake, "--patience", "0.2")
    assert code == 1
    assert "limits the rate" in err


def test_the_run_stops_before_the_budget_is_exceeded(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        # A reply costs 1000 + 100 tokens: 0.0012. The second could cost twice as much as the first.
        code, _, err = bench(fake, "--price", "1,2", "--max-cost", "0.005", "--parallel", "1")
        assert code == 1
        assert "--max-cost" in err
        spent = 0.0012 * len(fake.replies)
        assert 0 < spent <= 0.005
        assert bench(fake, "--price", "1,2", "--max-cost", "1")[0] == 0
        assert len(fake.replies) == ITEMS


def test_the_budget_holds_although_the_first_estimate_is_too_low(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD, wait=0.02)) as fake:
        # By the estimate of 0.0006 for each, four requests would be within the budget; each costs 0.0012.
        assert bench(fake, "--price", "1,2", "--max-cost", "0.003", "--parallel", "4")[0] == 1
        assert 0 < 0.0012 * len(fake.replies) <= 0.003
        # What the requests under way could cost is not spent yet: they are waited for.
        assert bench(fake, "--price", "1,2", "--max-cost", "0.008", "--parallel", "4")[0] == 1
        assert len(fake.replies) == 5  # 0.006, and another one could cost twice as much as each of them


def test_a_missing_or_damaged_picture_is_counted_and_named(bench: Runner) -> None:
    (bench.pictures / "1.png").unlink()
    (bench.pictures / "2.png").write_bytes((bench.pictures / "3.png").read_bytes()[:40])
    with serving(lambda request: Answer(GOOD)) as fake:
        code, out, _ = bench(fake)
        assert code == 1
        assert len(fake.requests) == ITEMS - 2
    assert "2 missing" in out
    reasons = {one["id"]: one["published"]["reason"] for one in bench.result["results"]}
    assert reasons["1"] == "there is no picture"
    assert "damaged" in reasons["2"]
    assert bench.result["tables"]["published"]["overall"] == {}


def test_a_changed_picture_is_judged_again(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        bench(fake)
        (bench.pictures / "1.png").write_bytes((bench.pictures / "2.png").read_bytes())
        assert bench.command("bench", "score", str(bench.out))[0] == 1
        assert bench.result["tables"]["published"]["counts"]["open"] == 1
        bench(fake)
        assert len(fake.requests) == ITEMS + 1


def test_strict_and_published_readings_stand_side_by_side(bench: Runner) -> None:
    def script(request: Request) -> Answer:
        return Answer(GOOD.replace("fine.", "3") if number_of(request) == 0 else GOOD)

    with serving(script) as fake:
        bench(fake)
        assert len(fake.requests) == ITEMS
    first = bench.result["results"][0]
    assert first["published"]["values"] == {"score": 3.75}
    assert first["strict"]["values"] == {"score": 4.0}


def test_the_table_counts_what_only_one_reading_scores(bench: Runner) -> None:
    with serving(lambda request: Answer("Overall: 5" if number_of(request) == 0 else GOOD)) as fake:
        out = bench(fake)[1]
    assert f"\n{ITEMS} scored, 0 unscored, 0 open, 0 missing\nstrict: {ITEMS - 1} scored, 1 unscored" in out


def test_a_line_that_a_crash_has_cut_is_removed(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        bench(fake)
        with (bench.out / "replies.jsonl").open("ab") as file:
            file.write(b'{"key": "cut in the mid')
        assert bench(fake)[0] == 0
        assert len(fake.requests) == len(bench.replies) == ITEMS


def test_a_fixed_random_subset(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        code, out, _ = bench(fake, "--limit", "3")
        assert code == 0
        assert len(fake.requests) == 3
    assert "3 of 6 items, chosen at random; the benchmark has 737" in out
    small = {one["id"] for one in bench.result["results"]}
    bench.out = bench.folder / "other"
    bench(None, "--limit", "4")
    assert small < {one["id"] for one in bench.result["results"]}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--limit", "2"], "was planned without --limit, not with --limit 2. Choose another --out"),
        (["--judge-model", "gpt-4o"], "was judged with --judge-model gpt-4.1, not with --judge-model gpt-4o"),
        (["--temperature", "0.5"], "was judged without --temperature, not with --temperature 0.5"),
    ],
    ids=["limit", "model", "temperature"],
)
def test_a_folder_of_other_settings_is_refused(bench: Runner, more: list[str], sentence: str) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        bench(fake)
        code, _, err = bench(fake, *more)
        assert code == 2
        assert sentence in err
        assert len(fake.requests) == ITEMS


def test_a_foreign_folder_is_left_alone(bench: Runner) -> None:
    bench.out.mkdir()
    (bench.out / "thesis.txt").write_text("important")
    code, _, err = bench(None)
    assert code == 2
    assert "contains other files" in err
    assert [path.name for path in bench.out.iterdir()] == ["thesis.txt"]


def test_a_damaged_plan_is_named_and_can_be_made_again(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        assert bench(fake)[0] == 0
        plan, judge = bench.out / "plan.json", bench.out / "judge.json"
        for file, old, new in ((plan, "Edit 3.", "Edit 4."), (plan, "{", "{}"), (judge, '"gpt-4.1"', "4")):
            whole = file.read_text()
            assert old in whole
            file.write_text(whole.replace(old, new, 1) if old != "{" else new)
            code, _, err = bench.command("bench", "score", str(bench.out))
            assert code == 2
            assert "is damaged" in err
            file.write_text(whole)
        plan.unlink()
        assert bench(fake)[0] == 0
        assert len(fake.requests) == ITEMS
        plan.unlink()
        (bench.out / "thesis.txt").write_text("important")
        assert "contains other files" in bench(fake)[2]


def test_a_run_killed_while_it_wrote_its_plan_can_be_repeated(bench: Runner) -> None:
    bench.out.mkdir()
    part = bench.out / ".plan.json.0123456789abcdef.part"
    part.write_text("{")
    os.utime(part, (0, 0))
    with serving(lambda request: Answer(GOOD)) as fake:
        assert bench(fake)[0] == 0
        assert not part.exists()
        later = bench.out / ".report.html.0123456789abcdef.part"
        later.write_text("<")
        os.utime(later, (0, 0))
        assert bench(fake)[0] == 0
    assert not later.exists()


def test_two_runs_are_compared_on_the_results_that_both_have(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        bench(fake)
    first, bench.out = bench.out, bench.folder / "other"
    worse = GOOD.replace("Compliance: 4", "Compliance: 1")
    with serving(lambda request: Answer("no" if number_of(request) == 5 else worse)) as fake:
        bench(fake)
    code, out, err = bench.command("bench", "compare", str(first), str(bench.out))
    assert code == 0, err
    assert "5 results are scored in both" in out
    assert "+1.000" in out
    code, out, _ = bench.command("bench", "compare", str(first), str(bench.out), "--json")
    found = json.loads(out)["differences"]["overall/mean_of_items"]
    assert found == {"difference": pytest.approx(1.0), "low": None, "high": None}  # of three source pictures


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("plan.json", "Rate the edit.", "Judge the edit.", "the judge prompts of"),
        (
            "result.json",
            '"omitted": []',
            '"omitted": ["temperature"]',
            "the set of parameters that the judge rejects of",
        ),
    ],
)
def test_runs_of_other_questions_are_not_compared(bench: Runner, file: str, old: str, new: str, sentence: str) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        assert bench(fake, "--limit", "1")[0] == 0
    other = bench.folder / "other"
    shutil.copytree(bench.out, other)
    text = (other / file).read_text()
    assert old in text
    changed = json.loads(text.replace(old, new))
    changed |= {"sha256": run_folder._hash_of({key: one for key, one in changed.items() if key != "sha256"})}
    (other / file).write_text(json.dumps(changed))
    code, _, err = bench.command("bench", "compare", str(bench.out), str(other))
    assert code == 2
    assert f"cannot be compared: {sentence}" in err


def test_a_comparison_reads_the_replies_and_not_an_older_result(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD) if number_of(request) < 2 else Answer(status=500)) as fake:
        assert bench(fake)[0] == 1
        judge = ["--judge", fake.url, "--judge-model", "gpt-4.1", "--retry-wait", "0.01"]
        out = bench.command("bench", "compare", str(bench.out), str(bench.out))[1]
        assert "2 results are scored in both" in out
        assert "no result of remove is scored in both" in out
        assert "mean_of" not in out
        fake.script = lambda request: Answer(GOOD)
        assert bench.command("bench", "judge", str(bench.out), *judge)[0] == 0
    out = bench.command("bench", "compare", str(bench.out), str(bench.out))[1]
    assert "6 results are scored in both" in out
    assert "overall/mean_of_types" in out


def test_there_is_no_overall_score_without_a_group(bench: Runner) -> None:
    def script(request: Request) -> Answer:
        return Answer("Sorry." if number_of(request) % 3 == 0 else GOOD)  # all of "add"

    with serving(script) as fake:
        code, out, _ = bench(fake)
        assert code == 1
        table = bench.result["tables"]["published"]
        assert (table["overall"], table["lacking"], table["complete"]) == ({}, ["add"], False)
        assert "There is no overall score, because no result of add has a score. Add --partial" in out
        assert next(line for line in out.splitlines() if line.startswith("add ")).split() == ["add", "0"]
        code, out, _ = bench(fake, "--partial")
    assert code == 1
    assert "The overall scores are partial: no result of add has a score." in out
    assert bench.result["tables"]["published"]["overall"]["mean_of_types"] == 4.0


def test_values_outside_of_the_scale_and_other_counts_are_named(bench: Runner) -> None:
    with serving(lambda request: Answer(f"Overall: {10**32}" if number_of(request) == 0 else GOOD)) as fake:
        out = bench(fake)[1]
    assert "Warning: 1 published values are outside of the benchmark's scale, such as that of item 0 (1e+32)." in out
    row = next(line.split() for line in out.splitlines() if line.startswith("add "))
    assert row == ["add", "2", "1", "5.000e+31", "4.000"]


def test_published_results_need_the_published_judge_prompts(bench: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites_imgedit, "_edition", lambda records: "ImgEdit (June 2025)")
    with serving(lambda request: Answer("no" if number_of(request) == 1 else GOOD)) as fake:
        assert "Published results" not in bench(fake)[1]
    prompts = json.loads((bench.out / "plan.json").read_text())["prompts"]
    monkeypatch.setattr(suites_imgedit.ImgEditSuite, "known_prompts", frozenset({hash_prompts(prompts)}))
    out = bench.command("bench", "score", str(bench.out))[1]
    assert "judge prompts and settings (ours leave out 1 unscored results):" in out
    assert bench.result["comparable"][0]["model"] == "UniWorld-V1"


def test_json_output_is_lines_of_json(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        _, out, _ = bench(fake, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["event"] == "result"
    assert lines[-1]["result"]["tables"]["published"]["overall"]["mean_of_items"] == 4.0
    assert {"done", "total", "cost", "seconds_left"} <= lines[0].keys()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--judge", "http://127.0.0.1:1/v1"], "--judge needs the name of the model"),
        (["--judge", "ftp://x", "--judge-model", "m"], "is not an address"),
        (["--judge", "http://me:secret@h/v1", "--judge-model", "m"], "must not contain a key"),
        (["--judge", "https://judge.example/v1", "--judge-model", "m"], "needs a key"),
        (["--judge", "openai", "--judge-model", "m", "--max-cost", "1"], "--max-cost needs the price"),
        (["--judge", "openai", "--judge-model", "m", "--price", "1"], "--price '1' is invalid"),
        (["--judge", "openai", "--judge-model", "m", "--timeout", "nan"], "--timeout: 'nan' is not a number from 0"),
        (["--judge", "openai", "--judge-model", "m", "--timeout", "0"], "--timeout: '0' is not a number from 0.001"),
        (["--split", "en"], "has no splits"),
        (["--workflow", "edit"], "exclude each other"),
    ],
)
def test_wrong_options(bench: Runner, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, err = bench(None, *arguments)
    assert code == 2
    assert sentence in err
    assert not bench.out.exists()  # no step has begun


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk-\u201c1\u201d", "sk-1 sk-2"], ids=["lines", "quotes", "space"])
def test_a_key_that_is_no_header_is_named_before_any_step(
    bench: Runner, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    code, _, err = bench(None, "--judge", "http://127.0.0.1:1/v1", "--judge-model", "m")
    assert code == 2
    assert "The key in the environment variable OPENAI_API_KEY contains spaces, line breaks" in err
    assert not bench.out.exists()


def test_a_judge_on_this_machine_is_asked_without_the_proxy(bench: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    with serving(lambda request: Answer(GOOD)) as fake:
        assert bench(fake, "--parallel", "1000000000")[0] == 0
        assert len(fake.requests) == ITEMS
    monkeypatch.delenv("ALL_PROXY")
    monkeypatch.setenv("HTTP_PROXY", fake.url.removesuffix("/v1"))  # it has ended
    bench.out = bench.folder / "another"
    _, _, err = bench(None, "--judge", "HTTP://judge.example/v1", "--judge-model", "m", "--retry-wait", "0")
    notes = "The key and the pictures are sent to judge.example without encryption."
    assert 0 < err.index(notes) < err.index("replies")
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    bench.out = bench.folder / "other"
    code, _, err = bench(None, "--judge", "http://judge.example/v1", "--judge-model", "m")
    assert code == 2
    assert "The proxy or the certificates that the environment sets cannot be used" in err


def test_a_judged_run_needs_no_key(bench: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        assert bench(fake)[0] == 0
        monkeypatch.delenv("OPENAI_API_KEY")
        assert bench(fake, "--judge", "https://judge.example/v1")[0] == 0
        assert len(fake.requests) == ITEMS


def test_denied_access_stops_a_run_only_without_a_reply(bench: Runner) -> None:
    denied = Answer(status=403, error={"message": f"Your region is not supported, {KEY}."})
    with serving(lambda request: denied) as fake:
        code, _, err = bench(fake, "--parallel", "1")
        assert code == 1
        assert (
            "No reply is recorded, and the judge denies access (status 403: Your region is not supported, ***)" in err
        )
        assert len(fake.requests) == 1
    # Such as by a firewall, which dislikes one of the texts.
    with serving(lambda request: denied if number_of(request) == 2 else Answer(GOOD)) as fake:
        assert bench(fake, "--parallel", "1")[0] == 1
        assert bench(fake, "--parallel", "1")[0] == 1
        assert len(fake.requests) == ITEMS + 1
    assert bench.result["tables"]["published"]["counts"]["open"] == 1
    # OpenRouter's moderation: a refusal.
    flagged = {"code": 403, "message": "Flagged", "metadata": {"reasons": ["violence"], "flagged_input": "Edit"}}
    with serving(lambda request: Answer(status=403, error=flagged)) as fake:
        assert bench(fake)[0] == 0
    assert bench.result["tables"]["published"]["counts"]["unscored"] == 1


def test_the_report_shows_the_beginning_of_a_reply_of_megabytes(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD + "\n" + "again " * 200_000)) as fake:
        assert bench(fake, "--limit", "1")[0] == 0
    html = (bench.out / "report.html").read_text()
    assert "letters are in replies.jsonl" in html
    assert len(html) < 100_000


def test_the_report_escapes_everything_and_loads_nothing(bench: Runner) -> None:
    evil = "</td><script>alert(1)</script><img src=http://evil.example/x>\n" + GOOD
    with serving(lambda request: Answer(evil)) as fake:
        bench(fake)
    html = (bench.out / "report.html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "<th>source</th><th>result</th>" in html
    assert html.count("<script>") == 1
    assert "default-src &#x27;none&#x27;" in html
    assert 'src="http' not in html
    assert html.count('src="data:image/jpeg') == 2 * ITEMS


def _body(**parts: Any) -> str:
    message = {"role": "assistant", "content": GOOD, **parts.pop("message", {})}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **parts})


@pytest.mark.parametrize(
    "answer",
    [
        Answer(raw=_body(choices={"0": 1})),
        Answer(raw=_body(choices=3)),
        Answer(raw=_body(choices=[{"message": "Score: 5"}])),
        Answer(raw=_body(message={"content": {"text": GOOD}})),
        Answer(raw=_body(message={"content": 4})),
        Answer(raw=_body(message={"refusal": {"a": 1}})),
        Answer(raw="[" * 200_000),
        Answer(raw=" " * (MAX_BODY + 1)),
        Answer(raw=_body(), headers={"Content-Encoding": "br"}),
        Answer(GOOD, finish="error"),
    ],
    ids=["mapping", "number", "text", "content", "grade", "refusal", "deep", "huge", "compressed", "broken_off"],
)
def test_a_response_of_another_form_is_no_reply(bench: Runner, answer: Answer) -> None:
    with serving(lambda request: answer if number_of(request) == 2 else Answer(GOOD)) as fake:
        code, _, err = bench(fake)
        assert code == 1
        assert re.search("the judge's (response|server broke off the reply)", err)
        assert Counter(number_of(one) for one in fake.requests)[2] == 5
    assert bench.result["tables"]["published"]["counts"]["open"] == 1
    assert len(bench.replies) == ITEMS - 1


@pytest.mark.parametrize(
    "usage", ["many", [1], {"prompt_tokens": "abc"}, {"prompt_tokens": -(10**9)}, {"prompt_tokens": 10**400}]
)
def test_a_reply_counts_whatever_the_server_says_about_its_tokens(bench: Runner, usage: Any) -> None:
    with serving(lambda request: Answer(raw=_body(usage=usage))) as fake:
        assert bench(fake, "--price", "1,1")[0] == 0
        assert len(fake.requests) == ITEMS
    assert {one["tokens_in"] for one in bench.replies} == {0}


def test_results_with_the_same_question_share_one_reply(bench: Runner) -> None:
    same = {number: bench.items["0"] for number in bench.items}
    (bench.folder / "data" / "Benchmark" / "singleturn" / "singleturn.json").write_text(json.dumps(same))
    for number in same:
        (bench.pictures / f"{number}.png").write_bytes((bench.pictures / "0.png").read_bytes())
    scores = iter("12345")

    def script(request: Request) -> Answer:
        return Answer(GOOD.replace("4", next(scores)), wait=0.05)

    with serving(script) as fake:
        assert bench(fake, "--parallel", "4")[0] == 0
        assert len(fake.replies) == len(bench.replies) == bench.result["judge"]["replies"] == 1
    assert bench.result["tables"]["published"]["counts"]["scored"] == ITEMS
    # A file with two replies to one request: the first one holds, and both have been paid for.
    second = {**bench.replies[0], "text": GOOD.replace("4", "2")}
    with (bench.out / "replies.jsonl").open("a") as file:
        file.write(json.dumps(second) + "\n")
    with serving(script) as fake:
        assert "cost 0.0024" in bench(fake, "--price", "1,2")[2]
        assert not fake.requests
    judge = bench.result["judge"]
    assert (judge["replies"], judge["tokens_in"], judge["tokens_out"]) == (2, 2000, 200)
    assert bench.result["tables"]["published"]["overall"]["mean_of_items"] == 3.0  # of 1, 3 and 5


def test_the_cost_is_not_summed_again_for_each_reply(bench: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[int] = []
    monkeypatch.setattr(Replies, "all", lambda self: sums.append(1) or list(self._replies))
    with serving(lambda request: Answer(GOOD)) as fake:
        assert "cost 0.0072" in bench(fake, "--price", "1,2", "--max-cost", "1")[2]
    assert len(sums) < ITEMS


def test_the_budget_holds_for_a_server_that_reports_no_tokens(bench: Runner) -> None:
    with serving(lambda request: Answer(raw=_body())) as fake:
        # By the estimate, a request has about 520 tokens and a reply 150.
        code, _, err = bench(fake, "--price", "1,1", "--max-cost", "0.0015", "--parallel", "1")
        assert code == 1
        assert "--max-cost" in err
        assert len(fake.requests) == 2


def test_a_server_that_sends_slowly_is_not_waited_for_without_end(bench: Runner) -> None:
    with serving(lambda request: Answer(drip=0.05) if number_of(request) == 2 else Answer(GOOD)) as fake:
        code, _, err = bench(fake, "--timeout", "0.3")
    assert code == 1
    assert "did not reply in time" in err


def test_a_redirect_is_named_and_not_followed(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as other:
        move = Answer(status=307, headers={"Location": f"{other.url}/chat/completions"})
        with serving(lambda request: move) as fake:
            code, _, err = bench(fake, "--parallel", "1")
            assert code == 1
            assert len(fake.requests) == 1
        assert f"redirects to '{other.url}" in err
        assert not other.requests


def test_a_wait_longer_than_the_patience_stops_at_once(bench: Runner) -> None:
    with serving(lambda request: Answer(status=429, headers={"Retry-After": "86400"})) as fake:
        code, _, err = bench(fake)
    assert code == 1
    assert "86400 seconds" in err


def test_an_overloaded_server_is_waited_for_as_long_as_it_says(bench: Runner) -> None:
    seen: Counter[int] = Counter()

    def script(request: Request) -> Answer:
        seen[number_of(request)] += 1
        # More often than a request that fails is sent.
        overloaded = Answer(status=503, headers={"Retry-After": "0.01"})
        return overloaded if seen[number_of(request)] <= 7 else Answer(GOOD)

    with serving(script) as fake:
        assert bench(fake, "--limit", "2")[0] == 0


def test_a_rate_limit_without_a_wait_is_not_hammered(bench: Runner) -> None:
    with serving(lambda request: Answer(status=429, headers={"Retry-After": "0"})) as fake:
        assert bench(fake, "--patience", "0.4", "--parallel", "1")[0] == 1
        assert len(fake.requests) < 15


def test_half_a_source_picture_is_named(bench: Runner) -> None:
    source = next((bench.folder / "data").rglob("*.jpg"))
    source.write_bytes(source.read_bytes()[:-40])
    code, _, err = bench(None)
    assert code == 2
    assert str(source) in err
    assert "the file is damaged" in err


def test_a_source_picture_that_was_moved_is_counted_as_missing(bench: Runner) -> None:
    with serving(lambda request: Answer(GOOD)) as fake:
        bench(fake)
        source = next((bench.folder / "data").rglob("*.jpg"))
        source.rename(source.with_suffix(".moved"))
        for step in (["score"], ["report"], ["judge", "--judge", fake.url, "--judge-model", "gpt-4.1"]):
            assert bench.command("bench", step[0], str(bench.out), *step[1:])[0] == 1
        assert len(fake.requests) == ITEMS
    assert bench.result["tables"]["published"]["counts"] == {"scored": 4, "unscored": 0, "open": 0, "missing": 2}
