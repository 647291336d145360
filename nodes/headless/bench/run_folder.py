"""The folder of one run: the plan, the rows, the pictures, the replies and the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown
from ....uniworld_core.files import PART_SUFFIX, remove_stale_parts, sha256_file, write_atomic
from ....uniworld_core.json_text import BadJson, loads
from .download import picture_problem
from .items import BenchItem, Suite, SuiteOptions, hash_items, limited
from .suites.table import suite_of

HEADER, VERSION = "uniworld_bench", 1
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")


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


class RunFolder:
    """The files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan_file = folder / "plan.json"
        self.workflow, self.rows, self.results = (
            folder / "workflow.json",
            folder / "rows.jsonl",
            folder / "rows.results.jsonl",
        )
        self.output, self.sources = folder / "output", folder / "sources"
        self.replies, self.judge = folder / "replies.jsonl", folder / "judge.json"
        self.result, self.page, self.sheet = folder / "result.json", folder / "report.html", folder / "sheet.png"
        self.problems = folder / "generation.json"
        self._own_pictures = folder / "pictures"
        self._pictures_file = folder / "pictures.json"

    def write_json(self, path: Path, content: object) -> None:
        """Write a JSON file atomically. Raises UniWorldError if the folder is not writable."""
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self.write(path, text.encode("utf-8", "surrogatepass"))

    def write(self, path: Path, data: bytes) -> None:
        """Write a file atomically. Raises UniWorldError if the folder is not writable."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise UniWorldError(f"'{path}' cannot be written: {error.strerror}. Choose another --out.") from error

    # --- plan ---------------------------------------------------------------------------------------------------------

    def plan(self) -> BenchPlan:
        """Read the plan. Raises UniWorldError if there is none, or if it is damaged."""
        content = read_json_file(
            self.plan_file, f"'{self.folder}' has no plan of a benchmark. Run `uniworld bench plan` first."
        )
        try:
            if content[HEADER] != VERSION:
                raise UniWorldError(f"'{self.plan_file}' is of another version of this program. Choose another --out.")
            items = tuple(BenchItem(**item) for item in content["items"])
            names = ("benchmark", "edition", "settings", "total", "prompts", "files", "missing")
            return BenchPlan(items=items, **{name: content[name] for name in names})
        except (KeyError, TypeError) as error:
            raise UniWorldError(
                f"'{self.plan_file}' is damaged. Remove it and run `uniworld bench plan` again."
            ) from error

    def write_plan(self, plan: BenchPlan) -> None:
        """Write the plan, unless the folder has the same one already.

        Raises:
            UniWorldError: the folder belongs to a run with other items or settings.
        """
        if self.plan_file.exists():
            old = self.plan()
            for what, one, other in (
                ("benchmark", old.benchmark, plan.benchmark),
                ("settings", old.settings, plan.settings),
                ("set of items", old.items_hash, plan.items_hash),
                ("set of judge prompts", old.prompts, plan.prompts),
            ):
                if one != other:
                    detail = f": {shown(one)}, not {shown(other)}" if what in ("benchmark", "settings") else ""
                    raise UniWorldError(f"'{self.folder}' is of another {what}{detail}. Choose another --out.")
        elif self.folder.is_dir() and any(self._is_foreign(one) for one in self.folder.iterdir()):
            raise UniWorldError(f"'{self.folder}' contains other files. Choose another --out.")
        content = {HEADER: VERSION, **asdict(plan)}
        self.write_json(self.plan_file, content)
        remove_stale_parts(self.folder, self.plan_file.name, age=3600)

    def _is_foreign(self, path: Path) -> bool:
        """Whether a file is none that a run which was killed before it had a plan has left behind."""
        part = path.name.startswith(f".{self.plan_file.name}.") and path.suffix == PART_SUFFIX
        return path != self.sources and not part

    # --- pictures -----------------------------------------------------------------------------------------------------

    @property
    def pictures(self) -> Path:
        """The folder of the results, in the layout of the published scorer."""
        if self._pictures_file.is_file():
            return Path(str(read_json_file(self._pictures_file, "").get("folder")))
        return self._own_pictures

    def use_pictures(self, folder: Path) -> None:
        """Use pictures made elsewhere. Raises UniWorldError if the folder is missing or the run has made its own."""
        if not folder.is_dir():
            raise UniWorldError(f"--pictures '{folder}' is not a folder. Pass the folder of the results.")
        if self._own_pictures.is_dir():
            raise UniWorldError(f"'{self.folder}' has pictures of its own already. Choose another --out.")
        self.write_json(self._pictures_file, {"folder": str(folder.resolve())})

    def own_pictures(self) -> Path:
        """Return the folder for pictures made by this run. Raises UniWorldError if it uses pictures made elsewhere."""
        if self._pictures_file.is_file():
            raise UniWorldError(f"'{self.folder}' measures the pictures in '{self.pictures}'. Choose another --out.")
        return self._own_pictures

    def picture(self, item: BenchItem, sample: int) -> Path | None:
        """Return the file of a result; None if there is none."""
        base = self.pictures / item.name(sample)
        names = (base.with_name(base.name + extension) for extension in _EXTENSIONS)
        return next((path for path in names if path.is_file()), None)


@dataclass(frozen=True)
class Made:
    """The results of a run: readable ones by item and sample, and the reasons why others are missing."""

    pictures: dict[tuple[str, int], Path]
    missing: dict[tuple[str, int], str]


def find_made(run: RunFolder, plan: BenchPlan) -> Made:
    """Find the pictures of a run."""
    failures = read_json_file(run.problems, "").get("failed", {}) if run.problems.is_file() else {}
    sources = {one for item in plan.items for one in (item.picture, item.source) if one is not None}
    # They may have been moved since the run was planned.
    unusable = {one: problem for one in sources if (problem := picture_problem(Path(one))) is not None}
    pictures, missing = {}, {}
    for item, sample in plan.results:
        place = (item.id, sample)
        source = plan.missing.get(item.id) or unusable.get(str(item.picture)) or unusable.get(str(item.source))
        if source is not None:
            missing[place] = f"its source picture is unusable: {source}"
            continue
        path = run.picture(item, sample)
        problem = "there is no picture" if path is None else picture_problem(path)
        if path is None or problem is not None:
            missing[place] = str(failures.get(row_id(item, sample)) or problem)
        else:
            pictures[place] = path
    return Made(pictures, missing)


def row_id(item: BenchItem, sample: int) -> str:
    """Return the id of a row of the batch."""
    return item.id if item.samples == 1 else f"{item.id}/{sample}"


def rows_of(item: BenchItem, sample: int) -> list[tuple[str, int]]:
    """Return the id and the seed's number of each row that makes a result: one, or one for each tile of a grid."""
    row = row_id(item, sample)
    return [(row, sample)] if item.tiles == 1 else [(f"{row}/{tile}", tile) for tile in range(item.tiles)]


def make_plan(
    name: str, data: Sequence[Path], options: SuiteOptions, limit: int | None, seed: int, run: RunFolder, partial: bool
) -> BenchPlan:
    """Read a benchmark and select its items.

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
    read = suite.read(data, SuiteOptions(split, options.count), run.sources)
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


def read_json_file(path: Path, missing: str) -> dict[str, Any]:
    """Read a JSON object from a file of a run.

    Raises:
        UniWorldError: with the message `missing` if there is no such file, or if it is damaged.
    """
    try:
        content = loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UniWorldError(missing or f"There is no file '{path}'.") from error
    except OSError as error:
        raise UniWorldError(f"'{path}' cannot be read: {error.strerror}. Check the path.") from error
    except BadJson as error:
        raise UniWorldError(f"'{path}' {error}. Remove it and run this step again.") from error
    if not isinstance(content, dict):
        raise UniWorldError(f"'{path}' is damaged. Remove it and run this step again.")
    return content


class Digests:
    """Hashes of files, computed once each."""

    def __init__(self) -> None:
        self._found: dict[Path, str] = {}

    def __call__(self, path: Path) -> str:
        if path not in self._found:
            self._found[path] = sha256_file(path)
        return self._found[path]
