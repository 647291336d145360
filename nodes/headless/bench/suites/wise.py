"""WISE: 1,000 prompts that need knowledge of the world, in the verified edition and the first one.

Source: PKU-YuanGroup/WISE eb51174, vllm_eval.py and WISE_legacy/gpt_eval.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .....uniworld_core.errors import UniWorldError, shown
from ..download import Download, filled, text_of
from ..items import BenchItem, BenchItems, BenchScores, PublishedResult, Suite, SuiteOptions, Values
from ..judging.ask import Ask, AskPicture
from ..scoring import wise
from ..scoring.outcome import Mode, Unscored

_WHERE = "Download https://github.com/PKU-YuanGroup/WISE."
_FIELDS = ("Prompt", "Explanation")
_TOPICS = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
# For each split: the edition, the end of the names of its files, the judge's script and its limit of tokens.
_SPLITS = {
    "verified": (wise.VERIFIED, "_verified.json", "vllm_eval.py", 500),
    "legacy": (wise.LEGACY, ".json", "gpt_eval.py", 2000),
    "legacy_rewrite": (wise.LEGACY, "_rewrite.json", "gpt_eval.py", 2000),
}
# SHA-256 of the sorted [id, prompt, explanation] of each split.
_KNOWN = {
    "verified": "787345a78d680240beb8671e632cc6f68223be45c661d0eab9193d0d2f772d76",
    "legacy": "e75c69b50babb3fe562144c5a1dad1dec2272036d71b5d9e2cd0e46312910d85",
    "legacy_rewrite": "bcc09a6529d7ff5fbbe7e6e933f60007806e9b1694e094b5a185974d61168585",
}


class WISESuite(Suite):
    """One edition of WISE; "legacy_rewrite" has the first edition's prompts with the knowledge written out."""

    title = "WISE"
    sizes = dict.fromkeys(_SPLITS, 1000)
    about = "1,000 prompts for text to image that need knowledge"
    splits: tuple[str, ...] = tuple(_SPLITS)
    main = "score"
    scale = (0, 1)
    known_prompts = frozenset({"ff8b3e40bc577cee21a14773eec5fe2fbb307fc6e6716a9cc42654f136de6081"})
    published: tuple[PublishedResult, ...] = (
        PublishedResult("UniWorld-V1", "Qwen3.5-35B-A3B", "verified", {"overall": 0.4260}, "WISE, leadboard.md"),
        PublishedResult("BAGEL", "Qwen3.5-35B-A3B", "verified", {"overall": 0.3520}, "WISE, leadboard.md"),
        PublishedResult("GPT-Image-1.5", "Qwen3.5-35B-A3B", "verified", {"overall": 0.8250}, "WISE, leadboard.md"),
    )

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        edition, ending, script, _ = _SPLITS[options.split]
        system, template = _judge_prompt(download, script)
        items = []
        for topic in _TOPICS:
            path = download.one(f"{topic}{ending}")
            records = download.json(path)
            if not isinstance(records, list):
                raise UniWorldError(f"'{path}' must be a list of prompts; it is {shown(records)}. {_WHERE}")
            items += [_item(record, edition, options.split, path) for record in records]
        return BenchItems(
            _edition(items, options.split), tuple(items), {"system": system, "template": template}, download.files
        )

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`."""
        text = filled(prompts["template"], {"Prompt": item.prompt, "Explanation": item.extra["explanation"]})
        edition, _, _, limit = _SPLITS[item.extra["split"]]
        kind = "verified" if edition is wise.VERIFIED else "legacy"
        # The verified edition's judge thinks by default, and its limit of tokens has no room for that.
        thinking = False if kind == "verified" else None
        return [Ask(kind, text, (AskPicture(result),), prompts["system"], limit, temperature=0.0, thinking=thinking)]

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`."""
        score = _read(kind, reply, mode)
        return score if isinstance(score, Unscored) else None

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`."""
        kind, reply = next(iter(answers.items()))
        score = _read(kind, reply, mode)
        return score if isinstance(score, Unscored) else {"score": score}

    def undefined(self, entries: Sequence[tuple[BenchItem, Values]]) -> str:
        """See `Suite.undefined`."""
        edition = _SPLITS[entries[0][0].extra["split"]][0]
        lacking = [name for name in edition.ranges if name not in {item.group for item, _ in entries}]
        if not lacking:
            return ""
        return f"The overall score needs prompts of every category; no scored one is of {', '.join(lacking)}."

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`. The overall score is the weighted sum of the categories, if all of them have scores."""
        edition = _SPLITS[entries[0][0].extra["split"]][0]
        table = wise.table([(item.extra["number"], values["score"]) for item, values in entries], edition)
        groups = {name: {"score": table.groups[name]} for name in edition.ranges if name in table.groups}
        overall = {}
        if len(groups) == len(edition.ranges):
            overall = {"overall": wise.weighted(table.groups, edition)}
        return BenchScores(groups, overall)


def _read(kind: str, reply: str, mode: Mode) -> float | Unscored:
    if kind == "verified":
        return wise.read_verified(wise.without_thinking(reply), mode)
    return wise.read_legacy(reply, mode)


def _judge_prompt(download: Download, script: str) -> tuple[str, str]:
    texts = download.texts_of(download.one(script), "build_evaluation_messages", _FIELDS)
    if len(texts) != 2 or not all(f"<{field}>" in texts[1] for field in _FIELDS):
        raise UniWorldError(f"'{script}' does not have the two judge prompts expected. {_WHERE}")
    return texts[0], texts[1]


def _item(record: Any, edition: wise.Edition, split: str, path: Path) -> BenchItem:
    number = record.get("prompt_id") if isinstance(record, dict) else None
    group = edition.category(number) if isinstance(number, int) else None
    if group is None:
        raise UniWorldError(f"'{path}' has a prompt with the id {shown(number)}, expected 1 to 1000. {_WHERE}")
    where = f"Prompt {number} of '{path}'"
    extra = {"explanation": text_of(record, "Explanation", where), "number": number, "split": split}
    return BenchItem(str(number), group, str(number), text_of(record, "Prompt", where), str(number), extra=extra)


def _edition(items: Sequence[BenchItem], split: str) -> str:
    rows = sorted([one.extra["number"], one.prompt, one.extra["explanation"]] for one in items)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return split if _KNOWN.get(split) == digest else "unknown"
