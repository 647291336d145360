"""GEdit-Bench: 606 real edits in eleven groups, in English and Chinese, judged by VIEScore.

Source: stepfun-ai/Step1X-Edit 570eba6, GEdit-Bench/test_gedit_score.py and viescore/. The items are the rows of a data set
in parquet or Arrow files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .....uniworld_core.errors import UniWorldError, shown
from .....uniworld_core.files import write_atomic
from ..damaged import picture_problem, unreadable
from ..download import Download, filled, is_relative
from ..items import SAME_RESULT, BenchItem, BenchItems, BenchScores, PublishedResult, Suite, SuiteOptions, Values
from ..judging.ask import Ask, AskPicture
from ..scoring import gedit
from ..scoring.outcome import Mode, Unscored

_WHERE = (
    "Download the data set https://huggingface.co/datasets/stepfun-ai/GEdit-Bench, and the folder GEdit-Bench of "
    "https://github.com/stepfun-ai/Step1X-Edit for the judge prompts."
)
_COLUMNS = ("task_type", "key", "instruction", "instruction_language", "input_image", "Intersection_exist")
_CONTEXT = "_context_no_delimit"
_EDIT, _CONSISTENCY = "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC"
_QUALITY = "_prompts_0shot_rule_PQ"
_MAX_TOKENS = 1400
# SHA-256 of the sorted [key, group, instruction] of the English items that UniWorld-V1's copy has: two keys occur twice.
_KNOWN = "2025562a55edaa53cb81011ba3981e0c2a17beb0ea741ea086cd3829a8ce25a6"
_EDITION = "GEdit-Bench"


def _published(model: str, source: str, consistency: float, quality: float, overall: float) -> PublishedResult:
    return PublishedResult(model, "gpt-4.1", _EDITION, {"SC": consistency, "PQ": quality, "O": overall}, source)


class GEditSuite(Suite):
    """GEdit-Bench in one language."""

    title = "GEdit-Bench"
    sizes = {"en": 606, "cn": 606}
    about = "606 edits in eleven groups; VIEScore's judge gives 0 to 10 for consistency (SC) and quality (PQ)"
    splits: tuple[str, ...] = ("en", "cn")
    main = "O"
    scale = (0, 10)
    known_prompts = frozenset({"3d02bb86a670ffb8414e66206223fb1ae73efd15eaeeeff58cd3c526096b378f"})
    published: tuple[PublishedResult, ...] = (
        _published("UniWorld-V1", "Skywork UniPic report, page 11", 4.93, 7.43, 4.85),
        _published("UniPic 1", "Skywork UniPic report, page 11", 6.72, 6.18, 5.83),
        _published("BAGEL", "Skywork UniPic report, page 11", 7.36, 6.83, 6.52),
        _published("GPT-4o", "Skywork UniPic report, page 11", 7.85, 7.62, 7.53),
    )

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        prompts = download.constants(download.one("vie_prompts.py"), [_CONTEXT, _EDIT, _CONSISTENCY, _QUALITY])
        files = download.shards("*.parquet") or download.shards("*.arrow")
        if not files:
            raise download.missing("its data set, files *.parquet or *.arrow")
        items: list[BenchItem] = []
        missing: dict[str, str] = {}
        for row in _rows(download, files, options.split):
            item, problem = _item(row, sources)
            items.append(item)
            if problem is not None:
                missing[item.id] = problem
        items = _joined(items)
        missing |= {
            item.id: missing[item.extra[SAME_RESULT]] for item in items if item.extra.get(SAME_RESULT) in missing
        }
        if not items:
            raise UniWorldError(f"The data set has no items with instruction_language '{options.split}'. {_WHERE}")
        return BenchItems(_edition(items), tuple(items), prompts, download.files, missing)

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`. The result is resized to the source's size, as published."""
        source = AskPicture(Path(str(item.source)), "jpeg")
        edited = AskPicture(result, "jpeg", source.pixels())
        rules = filled(prompts[_CONSISTENCY], {"instruction": item.prompt})
        consistency = "\n".join([prompts[_CONTEXT], prompts[_EDIT], rules])
        quality = "\n".join([prompts[_CONTEXT], prompts[_QUALITY]])
        return [
            Ask("SC", consistency, (source, edited), max_tokens=_MAX_TOKENS),
            Ask("PQ", quality, (edited,), max_tokens=_MAX_TOKENS),
        ]

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`."""
        score = gedit.read(reply, mode)
        return score if isinstance(score, Unscored) else None

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`."""
        consistency, quality = (gedit.read(answers.get(kind), mode) for kind in ("SC", "PQ"))
        if isinstance(consistency, Unscored):
            return consistency
        if isinstance(quality, Unscored):
            return quality
        scores = gedit.combined(consistency, quality)
        if isinstance(scores, Unscored):
            return scores
        return {"SC": scores.consistency, "PQ": scores.quality, "O": scores.overall}

    def undefined(self, entries: Sequence[tuple[BenchItem, Values]]) -> str:
        """See `Suite.undefined`."""
        shared = {item.group for item, _ in entries if item.extra["intersection"]}
        lacking = sorted({item.group for item, _ in entries} - shared)
        if not lacking:
            return ""
        return f"There are no overall scores of the intersection: it has no scored item of {', '.join(lacking)}."

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`. Overall scores are means over groups, of all items and of the intersection."""
        rows = [
            gedit.ScoredEdit(
                item.group, item.extra["language"], item.extra["intersection"], gedit.Scores(values["SC"], values["PQ"])
            )
            for item, values in entries
        ]
        language = entries[0][0].extra["language"]
        present = list(dict.fromkeys(row.group for row in rows))
        everything, shared = (gedit.means(rows, language, intersection, present) for intersection in (False, True))
        groups = {
            group: {column: everything[column][group] for column in ("SC", "PQ", "O")}
            for group in everything["SC"]
            if group != "average"
        }
        overall = {column: values["average"] for column, values in everything.items() if "average" in values}
        overall |= {f"{column} intersection": one["average"] for column, one in shared.items() if "average" in one}
        return BenchScores(dict(sorted(groups.items())), overall)


def _rows(download: Download, files: Sequence[Path], language: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one language from parquet or Arrow files, a few at a time."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UniWorldError("GEdit-Bench needs the package pyarrow. Install it with: pip install 'uniworld[bench]'")
    import pyarrow

    for path in files:
        try:
            for batch in _batches(path):
                lacking = [name for name in _COLUMNS if name not in batch.schema.names]
                if lacking and "source_image" not in batch.schema.names:
                    raise UniWorldError(f"'{path}' has no column '{lacking[0]}'. {_WHERE}")
                for place, found in enumerate(batch.column("instruction_language").to_pylist()):
                    if found == language:
                        yield batch.slice(place, 1).to_pylist()[0]
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(path, error) from error
        download.record(path, f"{path.stat().st_size} bytes")


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import ipc, parquet

    if path.suffix == ".parquet":
        yield from parquet.ParquetFile(path).iter_batches(batch_size=16)
        return
    with pyarrow.memory_map(str(path)) as source:
        try:
            yield from ipc.open_stream(source)
        except pyarrow.ArrowInvalid:  # the file format of Arrow instead of the stream that `datasets` writes
            source.seek(0)
            reader = ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))


def _item(row: Mapping[str, Any], sources: Path) -> tuple[BenchItem, str | None]:
    task, key, instruction, language = (row.get(name) for name in _COLUMNS[:4])
    valid = all(isinstance(one, str) and one for one in (task, key, instruction, language))
    name = f"{task}/{language}/{key}"
    if not valid or not is_relative(name) or name.count("/") != 2:
        raise UniWorldError(f"The data set has an invalid item: {shown([task, key, instruction, language])}. {_WHERE}")
    # The mirror has one column of pictures. Published results edit the raw picture and show the judge the other one.
    judged = row.get("input_image") or row.get("source_image")
    edited = row.get("input_image_raw") or judged
    pictures = [_extracted(one, sources) for one in (edited, judged)]
    item = BenchItem(
        f"{task}/{language}/{key}",
        str(task),
        pictures[0].stem,
        str(instruction),
        f"fullset/{name}",
        picture=str(pictures[0]),
        shown=str(pictures[1]),
        source_target=f"fullset/{name}_SRCIMG",
        extra={"language": language, "intersection": bool(row.get("Intersection_exist")), "key": key},
    )
    problems = (picture_problem(path) for path in pictures)
    return item, next((problem for problem in problems if problem), None)


def _joined(items: Sequence[BenchItem]) -> list[BenchItem]:
    """Return the items with unique ids. Of rows with the same key, the files of the last overwrite those of the others.

    The published script scores every row, with its own instruction, on the files that its key names. The earlier rows
    therefore get the source and the result of the last, and a number behind their id.
    """
    last = {item.id: item for item in items}
    seen: dict[str, int] = {}
    made = []
    for item in items:
        kept = last[item.id]
        if item is kept:
            made.append(item)
            continue
        number = seen[item.id] = seen.get(item.id, 0) + 1
        made.append(
            dataclasses.replace(
                item,
                id=f"{item.id}~{number}",
                cluster=kept.cluster,
                picture=kept.picture,
                shown=kept.shown,
                extra={**item.extra, SAME_RESULT: item.id},
            )
        )
    return made


def _extracted(cell: Any, sources: Path) -> Path:
    """Write a picture of the data set to a file named by its hash, and return the file's absolute path."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        data = b""
    suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg" if data.startswith(b"\xff\xd8") else ".img"
    path = sources.resolve() / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data, sync=False)
        except OSError as error:
            raise UniWorldError(f"'{path}' cannot be written: {error.strerror}. Choose another --out.") from error
    return path


def _edition(items: Sequence[BenchItem]) -> str:
    """Return the edition. Of the two rows of a key, the known copy has either."""
    for ordered in (items, list(reversed(items))):
        rows = {one.extra["key"]: [one.extra["key"], one.group, one.prompt] for one in ordered}
        if hashlib.sha256(json.dumps(sorted(rows.values())).encode()).hexdigest() == _KNOWN:
            return _EDITION
    return "unknown"
