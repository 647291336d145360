"""ImgEdit-Bench: 737 edits of 171 pictures in nine types, and 47 difficult ones (UGE).

Source: PKU-YuanGroup/ImgEdit 547185d, Benchmark/Basic/basic_bench.py and Benchmark/UGE/UGE_bench.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .....uniworld_core.errors import UniWorldError, shown
from ..damaged import picture_problem
from ..download import Download, is_relative, root_of, text_of
from ..items import BenchItem, BenchItems, BenchScores, PublishedResult, Suite, SuiteOptions, Values
from ..judging.ask import Ask, AskPicture
from ..scoring import imgedit
from ..scoring.outcome import Mode, Unscored

_WHERE = (
    "Download Benchmark.tar from https://huggingface.co/datasets/sysuyy/ImgEdit and unpack it; items and judge prompts "
    "are also in the folder Benchmark of https://github.com/PKU-YuanGroup/ImgEdit."
)
_FIELD = "<edit_prompt>"
# SHA-256 of the items as JSON with sorted keys. 57 instructions differ between the two editions.
EDITIONS = {
    "e5560a3ec814ceb6b0e426da2de51599481326d844b2948196448128fc378f7f": "ImgEdit (June 2025)",
    "35d00d1654416e564844b52f6043909aa04df8838a8a86281c566eddd834a37c": "ImgEdit (June 2025)",
    "6598359030e573c695925efaaad5d8083cb52694b7d3a66d3ca488d3f840d1e9": "UniWorld-V1's copy (May 2025)",
}
_LEADERBOARD = "ImgEdit, assets/leaderboard.png"
_COLUMNS = (
    "add",
    "adjust",
    "extract",
    "replace",
    "remove",
    "background",
    "style",
    "compose",
    "action",
    "mean_of_types",
)


def _published(model: str, source: str, *scores: float) -> PublishedResult:
    return PublishedResult(model, "gpt-4.1", "ImgEdit (June 2025)", dict(zip(_COLUMNS, scores)), source)


class ImgEditSuite(Suite):
    """The basic suite."""

    title = "ImgEdit-Bench"
    sizes = {"": 737}
    about = "737 edits in nine types; the judge gives 1 to 5 for three criteria"
    splits: tuple[str, ...] = ()
    main = "score"
    pooled: tuple[str, ...] = ("mean_of_items",)
    scale = (imgedit.LOWEST, imgedit.HIGHEST)
    known_prompts = frozenset({"fd33b72f180aaa31460d6bc61173087755cefc717d890982ae06325a3119fd6f"})
    published: tuple[PublishedResult, ...] = (
        _published("UniWorld-V1", _LEADERBOARD, 3.82, 3.64, 2.27, 3.47, 3.24, 2.99, 4.21, 2.96, 2.74, 3.26),
        _published("BAGEL", _LEADERBOARD, 3.81, 3.59, 1.58, 3.85, 3.16, 3.39, 4.51, 2.67, 4.25, 3.42),
        _published("FLUX.1-Kontext-dev", _LEADERBOARD, 3.83, 3.65, 2.27, 4.45, 3.17, 3.98, 4.55, 3.35, 4.29, 3.71),
        _published("GPT-4o", _LEADERBOARD, 4.61, 4.33, 2.90, 4.35, 3.66, 4.57, 4.93, 3.96, 4.89, 4.20),
        _published(
            "UniPic 1", "Skywork UniPic report, page 12", 3.66, 3.51, 2.06, 4.31, 2.77, 3.77, 4.76, 2.56, 4.04, 3.49
        ),
    )

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        records, path = _records(download, ("singleturn.json", "basic_edit.json"))
        prompts_path = download.one("judge_prompt.json", "prompts.json")
        prompts = _prompts(download.json(prompts_path), prompts_path)
        root = root_of(download, [str(record.get("id")) for record in records.values()], path.parent)
        if root is None:
            raise download.missing(f"the picture '{next(iter(records.values())).get('id')}'")
        items: list[BenchItem] = []
        missing: dict[str, str] = {}
        for key, record in records.items():
            kind = _type(text_of(record, "edit_type", f"Item '{key}' of '{path}'"))
            if kind not in prompts:
                raise UniWorldError(
                    f"'{prompts_path}' has no prompt for the edit type '{kind}' of item '{key}'. {_WHERE}"
                )
            item, problem = _item(key, record, kind, root, path)
            items.append(item)
            if problem is not None:
                missing[key] = problem
        return BenchItems(_edition(records), tuple(items), prompts, download.files, missing)

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`."""
        return [_ask(item, result, prompts[item.group])]

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`."""
        return _unread(imgedit.read_basic(reply, mode))

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`."""
        return _values(imgedit.read_basic(answers.get("score"), mode))

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`."""
        scores = {str(place): values["score"] for place, (_, values) in enumerate(entries)}
        table = imgedit.table(scores, {str(place): item.group for place, (item, _) in enumerate(entries)})
        order = [kind for kind in imgedit.TYPES if kind in table.groups]
        rest = [kind for kind in table.groups if kind not in order]
        return BenchScores({kind: {"score": table.groups[kind]} for kind in [*order, *rest]}, table.overall)


class ImgEditUGESuite(Suite):
    """The UGE suite."""

    title = "ImgEdit-Bench UGE"
    sizes = {"": 47}
    about = "47 difficult edits; the judge gives 1 to 5"
    splits: tuple[str, ...] = ()
    main = "score"
    pooled: tuple[str, ...] = ("mean_of_items",)
    scale = (imgedit.LOWEST, imgedit.HIGHEST)

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        records, path = _records(download, ("UGE_edit.json",))
        prompts = download.constants(download.one("UGE_bench.py"), ["prompt"])
        root = root_of(download, [str(record.get("id")) for record in records.values()], path.parent)
        if root is None:
            raise download.missing(f"the picture '{next(iter(records.values())).get('id')}'")
        found = {key: _item(key, record, "all", root, path) for key, record in records.items()}
        missing: dict[str, str] = {key: problem for key, (_, problem) in found.items() if problem is not None}
        return BenchItems(
            _edition(records), tuple(item for item, _ in found.values()), prompts, download.files, missing
        )

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`."""
        return [_ask(item, result, prompts["prompt"])]

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`. Both modes accept "Score: d": the published parser reads neither form of the suite's own README."""
        published = imgedit.read_uge(reply, "published") if mode == "published" else None
        return None if isinstance(published, float) else _unread(imgedit.read_uge(reply))

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`."""
        return _values(imgedit.read_uge(answers.get("score"), mode))

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`."""
        table = imgedit.table_uge({str(place): values["score"] for place, (_, values) in enumerate(entries)})
        groups = {"all": {"score": table.overall["mean_of_items"]}} if table.overall else {}
        return BenchScores(groups, table.overall)


def _records(download: Download, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], Path]:
    path = download.one(*names)
    content = download.json(path)
    valid = isinstance(content, dict) and all(isinstance(record, dict) for record in content.values())
    if not valid or not content:
        raise UniWorldError(f"'{path}' must map keys to items; it is {shown(content)}. {_WHERE}")
    for key, record in content.items():
        name = str(record.get("id"))
        if not is_relative(name) or not is_relative(key) or "/" in key:
            raise UniWorldError(
                f"Item '{key}' of '{path}': the key or the picture '{name}' is not a name inside its folder. {_WHERE}"
            )
    return content, path


def _prompts(content: Any, path: Path) -> dict[str, str]:
    texts = content.items() if isinstance(content, dict) else ()
    if not texts or not all(isinstance(text, str) and _FIELD in text for _, text in texts):
        raise UniWorldError(f"'{path}' must map edit types to prompts with {_FIELD}; it is {shown(content)}. {_WHERE}")
    return {_type(str(kind)): str(text) for kind, text in texts}


def _type(kind: str) -> str:
    return imgedit.OLD_TYPES.get(kind, kind)


def _item(key: str, record: Mapping[str, Any], group: str, root: Path, path: Path) -> tuple[BenchItem, str | None]:
    where = f"Item '{key}' of '{path}'"
    name = text_of(record, "id", where)
    picture = root / name
    item = BenchItem(key, group, name, text_of(record, "prompt", where), key, str(picture.resolve()))
    return item, picture_problem(picture)


def _ask(item: BenchItem, result: Path, prompt: str) -> Ask:
    # The published script labels all files as PNG; sent is the file's own type, which strict servers check.
    pictures = (AskPicture(Path(str(item.source))), AskPicture(result))
    return Ask("score", prompt.replace(_FIELD, item.prompt), pictures)


def _unread(score: float | Unscored) -> Unscored | None:
    return score if isinstance(score, Unscored) else None


def _values(score: float | Unscored) -> Values | Unscored:
    return score if isinstance(score, Unscored) else {"score": score}


def _edition(records: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
    return EDITIONS.get(digest, "unknown")
