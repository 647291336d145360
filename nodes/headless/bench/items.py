"""Items of a benchmark, as a suite reads them from the user's download, and the protocol of suites."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from .judging.ask import Ask
from .scoring.outcome import Mode, Unscored


@dataclass(frozen=True)
class BenchItem:
    """One item of a benchmark.

    Attributes:
        group: the row of the table that it counts in.
        cluster: its source picture or prompt. Confidence intervals resample clusters, because items that share one are not
            independent.
        picture: path of the picture to edit; None for text-to-image.
        shown: path of the source picture that the judge and the report see, if it is another file than `picture`.
        target: name of the result in the folder of the published scorer, without extension; "{sample}" and "{turn}" are
            replaced by the number of the sample, from 0 and from 1.
        source_target: the same for the source picture, if the published scorer expects it beside the result.
        samples: number of pictures to make; for edits in a row, the number of turns.
        tiles: number of pictures that are joined to one result: 1, or 4 for a grid of two rows.
        extra: further fields that the suite needs; "turns" has the instructions of edits in a row.
    """

    id: str
    group: str
    cluster: str
    prompt: str
    target: str
    picture: str | None = None
    shown: str | None = None
    source_target: str | None = None
    samples: int = 1
    tiles: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str | None:
        """Path of the source picture that the judge and the report see."""
        return self.shown or self.picture

    @property
    def turns(self) -> tuple[str, ...]:
        """The instructions of edits in a row, each of which edits the result of the one before; empty for other items."""
        return tuple(self.extra.get("turns", ()))

    def instruction(self, sample: int) -> str:
        """Return the prompt of a sample."""
        return self.turns[sample] if self.turns else self.prompt

    def name(self, sample: int) -> str:
        """Return the name of a result in the published layout, without extension."""
        return self.target.replace("{sample}", f"{sample:05d}").replace("{turn}", str(sample + 1))

    def result_id(self, sample: int) -> str:
        """Return the name of a result in messages, and the id of its row in the batch."""
        if self.turns:
            return f"{self.id}/turn{sample + 1}"
        return self.id if self.samples == 1 else f"{self.id}/{sample}"


@dataclass(frozen=True)
class BenchItems:
    """What a suite read from the download.

    Attributes:
        edition: name of the version of the items, found by their hash; "unknown" for others.
        items: all items, or those that `limited` selects.
        prompts: texts for the judge, by name.
        files: files that were read, with their SHA-256.
        missing: ids of items whose source picture is missing or damaged, with the reason.
    """

    edition: str
    items: tuple[BenchItem, ...]
    prompts: dict[str, str]
    files: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteOptions:
    """Choices of a user about the items.

    Attributes:
        split: names a subset, such as a language.
        count: number of items of each kind, for a suite that draws its items.
    """

    split: str = ""
    count: int = 10


@dataclass(frozen=True)
class BenchScores:
    """Mean scores of a run, or of a resampled one.

    Attributes:
        groups: row -> column -> mean.
        overall: the benchmark's overall scores by name; undefined ones are omitted.
        counts: number of values in each row, if rows are not the groups of the items.
    """

    groups: dict[str, dict[str, float]]
    overall: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedResult:
    """A published result, shown beside a run with the same judge, items and settings.

    Attributes:
        judge: prefix of the judge model's name.
        scores: by group or name of an overall score.
        source: where it was published.
    """

    model: str
    judge: str
    edition: str
    scores: dict[str, float]
    source: str


# Key of `BenchItem.extra` in resampled entries: how often the item's cluster was drawn before.
DRAW = "draw"

# Key of `BenchItem.extra` with the id of another item, if the published files of both have the same names.
SAME_RESULT = "same_result_as"

# Values of one scored picture, such as {"SC": 7.0, "PQ": 8.0, "O": 7.48}.
Values = dict[str, float]


class Suite(Protocol):
    """A benchmark.

    Attributes:
        title: name for tables and messages.
        about: one sentence for `bench list`.
        splits: valid values of `SuiteOptions.split`; the first is the default. Empty if there is no choice.
        sizes: number of items of the published benchmark by split, "" if there are none; a download with fewer is marked.
        main: the value of a picture by which the report sorts, and which `bench compare` compares.
        columns: the values that the report shows; empty for all.
        vqa: the same benchmark with a VQA model as the judge; None if it has no questions for one.
        published: published results.
        draws: whether the suite draws its items, rather than reading them from a download.
        exact: whether `measure` scores the results, without a judge.
        by_detector: whether the judge is an object detector rather than a language model.
        pooled: overall scores that are means over all results, rather than over groups.
        scale: lowest and highest value of a result; None if the published reading cannot exceed it.
        known_prompts: `hash_prompts` of the judge prompts of published results.
        scored: whether there is a scorer. Without one, people compare the results in the report.
    """

    title: str
    about: str
    splits: tuple[str, ...]
    main: str
    columns: tuple[str, ...] = ()
    vqa: Suite | None = None
    published: tuple[PublishedResult, ...] = ()
    draws: bool = False
    exact: bool = False
    by_detector: bool = False
    pooled: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
    known_prompts: frozenset[str] = frozenset()
    scored: bool = True
    sizes: Mapping[str, int] = MappingProxyType({})

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """Read the items from the user's download.

        Args:
            sources: folder for pictures that must be extracted from the download.

        Raises:
            UniWorldError: a file is missing or invalid; the message says where to get it.
        """

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """Return the questions to the judge about one result.

        Args:
            answered: replies so far, by kind of question; later questions may depend on them.
        """

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """Return why a reply cannot be read; None if it can."""

    def check_for(self, item: BenchItem, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """Return the same as `check`, for a suite where it depends on the item."""
        return self.check(kind, reply, mode)

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """Return the values of one result, or why there are none."""

    def measure(self, item: BenchItem, result: Path) -> Values | Unscored:
        """Return the values of one result without a judge, for an exact suite."""
        return Unscored("it needs a judge")

    def companions(self, item: BenchItem) -> dict[str, str]:
        """Return further files that the published scorer expects beside the results: texts by name."""
        return {}

    def rows(self, items: Sequence[BenchItem]) -> list[str]:
        """Return the rows of the table if every result of these items is scored."""
        return list(dict.fromkeys(item.group for item in items))

    def undefined(self, entries: Sequence[tuple[BenchItem, Values]]) -> str:
        """Return in a sentence which overall scores these results do not define, and why; "" if they define all."""
        return ""

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """Compute the table. An item may occur several times: with several samples, and when entries are resampled: `DRAW`
        is then the number of the draw.
        """


# Returns the digest of a file; a run caches them.
Digest = Callable[[Path], str]


def hash_items(items: Sequence[BenchItem]) -> str:
    """Hash the items, independent of where the pictures are."""
    content = [[one.id, one.group, one.prompt, one.samples, one.extra] for one in items]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_prompts(prompts: Mapping[str, str]) -> str:
    """Hash the texts for the judge."""
    return hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()


def limited(items: Sequence[BenchItem], limit: int | None) -> tuple[BenchItem, ...]:
    """Select a random subset that is the same in every run: the items with the smallest hashes, in their order."""
    if limit is None or limit >= len(items):
        return tuple(items)
    ranked = sorted(items, key=lambda one: hashlib.sha256(one.id.encode(errors="surrogatepass")).hexdigest())
    chosen = {one.id for one in ranked[:limit]}
    return tuple(one for one in items if one.id in chosen)


def seed_of(base: int, item: BenchItem, sample: int) -> int:
    """Return the seed of a picture, 0 to 2^32 - 1, from the item and the sample.

    The published programs set one seed per process, so that their pictures depend on the order of the items.
    """
    text = f"{base}/{item.id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:4], "big")
