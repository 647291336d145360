"""The plan of a run: which items it measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown
from .items import BenchItem, Suite, SuiteOptions, hash_items, limited
from .suites.table import suite_of


@dataclass(frozen=True)
class BenchPlan:
    """What a run measures.

    Attributes:
        benchmark: name of the benchmark.
        settings: `split`, `limit` and `seed`.
        total: number of items in the download; `limit` selects some of them.
        missing: items that cannot be measured, because their source picture is missing, with the reason.
    """

    benchmark: str
    edition: str
    settings: dict[str, Any]
    items: tuple[BenchItem, ...]
    total: int
    prompts: dict[str, str]
    files: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def suite(self) -> Suite:
        return suite_of(self.benchmark)

    @property
    def items_hash(self) -> str:
        return hash_items(self.items)

    @property
    def results(self) -> list[tuple[BenchItem, int]]:
        """All pictures to make, as item and sample."""
        return [(item, sample) for item in self.items for sample in range(item.samples)]


def make_plan(
    name: str, data: Sequence[Path], options: SuiteOptions, limit: int | None, seed: int, sources: Path, partial: bool
) -> BenchPlan:
    """Read a benchmark and select its items.

    Args:
        sources: folder for source pictures that are not files of the download.

    Raises:
        UniWorldError: the download is incomplete; with `partial`, missing source pictures are only counted.
    """
    suite = suite_of(name)
    if suite.splits and options.split not in ("", *suite.splits):
        raise UniWorldError(f"--split '{options.split}' is unknown. The splits are: {', '.join(suite.splits)}.")
    if not suite.splits and options.split:
        raise UniWorldError(f"{suite.title} has no splits. Omit --split.")
    if suite.draws == bool(data):
        raise UniWorldError(
            f"{suite.title} draws its items. Omit --data."
            if data
            else f"{suite.title} needs its files. Pass their folder as --data."
        )
    split = options.split or (suite.splits[0] if suite.splits else "")
    read = suite.read(data, SuiteOptions(split, options.count), sources)
    items = limited(read.items, limit)
    chosen = {item.id for item in items}
    if len(chosen) != len(items):
        raise UniWorldError(f"{suite.title}: several items have the same id. Download it again.")
    missing = {key: reason for key, reason in read.missing.items() if key in chosen}
    if missing and not partial:
        key, reason = next(iter(missing.items()))
        picture = next(item.source for item in items if item.id == key)
        raise UniWorldError(
            f"The download is incomplete: the source pictures of {len(missing)} of {len(items)} items cannot be used, such "
            f"as '{picture}' ({reason}). Download it again, or add --partial to measure the other items."
        )
    drawn = {"count": options.count} if suite.draws else {}
    settings = {"split": split, **drawn, "limit": None if len(items) == len(read.items) else limit, "seed": seed}
    return BenchPlan(name, read.edition, settings, items, len(read.items), read.prompts, read.files, missing)


def difference_of(old: BenchPlan, new: BenchPlan) -> str | None:
    """Return in what two plans differ, as the end of a sentence on what was planned; None if they are the same."""
    if old.benchmark != new.benchmark:
        return f"for {shown(old.benchmark)}, not for {shown(new.benchmark)}"
    for name in {**old.settings, **new.settings}:
        one, other = (plan.settings.get(name) for plan in (old, new))
        if one != other:
            return f"{_option(name, one)}, not {_option(name, other)}"
    if old.items_hash != new.items_hash:
        return "with other items"
    return "with other judge prompts" if old.prompts != new.prompts else None


def _option(name: str, value: object) -> str:
    return (
        f"without --{name}" if value in (None, "") else f"with --{name} {value if type(value) is str else shown(value)}"
    )
