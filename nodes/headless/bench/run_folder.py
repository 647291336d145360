"""The folder of one run: the plan, the rows, the pictures, the replies and the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import PART_SUFFIX, remove_stale_parts, sha256_file, write_atomic
from ....uniworld_core.json_text import BadJson, loads
from .batch_records import clear_records, read_records, record_problem, unused
from .damaged import grid_problem, picture_problem
from .items import BenchItem
from .judging.replies import read_replies
from .plan import BenchPlan, difference_of

HEADER, VERSION = "uniworld_bench", 1
_HASH = "sha256"
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")


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
        self.problems, self.questions = folder / "generation.json", folder / "questions.jsonl"
        self._own_pictures = folder / "pictures"
        self._pictures_file = folder / "pictures.json"

    def write_json(self, path: Path, content: object) -> None:
        """Write a JSON file atomically. Raises UniWorldError if the folder is not writable."""
        self.write(path, json_bytes(content))

    def write(self, path: Path, data: bytes) -> None:
        """Write a file atomically. Raises UniWorldError if the folder is not writable."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            raise UniWorldError(
                f"'{path}' cannot be written: {error.strerror}. Fix that and run the command again, or choose another --out."
            ) from error

    # --- plan ---------------------------------------------------------------------------------------------------------

    def plan(self) -> BenchPlan:
        """Read the plan. Raises UniWorldError if there is none, or if it is damaged."""
        content = read_json_file(
            self.plan_file, f"'{self.folder}' has no plan of a benchmark. Run `uniworld bench plan` first."
        )
        found = content.pop(_HASH, None)
        try:
            if content[HEADER] != VERSION:
                raise UniWorldError(f"'{self.plan_file}' is of another version of this program. Choose another --out.")
            # A change to it would change scores, or fail somewhere.
            if found != _hash_of(content):
                raise KeyError(_HASH)
            items = tuple(BenchItem(**item) for item in content["items"])
            names = ("benchmark", "edition", "settings", "total", "prompts", "files", "missing")
            return BenchPlan(items=items, **{name: content[name] for name in names})
        except (KeyError, TypeError) as error:
            raise UniWorldError(
                f"'{self.plan_file}' is damaged or was changed. Remove it and run `uniworld bench plan` again with the same "
                "options; pictures and replies are kept."
            ) from error

    def write_plan(self, plan: BenchPlan) -> None:
        """Write the plan. It replaces another one as long as the run has made nothing.

        Raises:
            UniWorldError: the folder belongs to a run with other items or settings.
        """
        if self.plan_file.exists():
            other = difference_of(self.plan(), plan)
            if other is not None and self.has_results:
                raise UniWorldError(f"'{self.folder}' was planned {other}. Choose another --out.")
            if other is not None:
                self.start_again()
        elif self.folder.is_dir() and not self._is_free():
            raise UniWorldError(f"'{self.folder}' contains other files. Choose another --out.")
        content = {HEADER: VERSION, **asdict(plan)}
        self.write_json(self.plan_file, {**content, _HASH: _hash_of(content)})
        # Of a run that was killed. Another process may be writing younger ones.
        pictures = {path.parent for path in self._own_pictures.rglob(f"*{PART_SUFFIX}")}
        for folder in (self.folder, self.sources, *pictures):
            remove_stale_parts(folder, age=3600)

    def _is_free(self) -> bool:
        """Whether a folder without a plan has nothing but what a run has left that was killed before it had one, or what a
        run has made whose plan was damaged and removed.
        """
        files = [path for path in self.folder.iterdir() if path != self.sources]
        if all(path.name.startswith(f".{self.plan_file.name}.") and path.suffix == PART_SUFFIX for path in files):
            return True
        return (self.replies.exists() or bool(self.records)) and all(map(self._is_of_run, files))

    def _is_of_run(self, path: Path) -> bool:
        ours = (
            self.output, self.replies, self.judge, self.result, self.page, self.sheet, self.problems, self.plan_file,
            self.questions, self._own_pictures, self._pictures_file, *self.records, *self._batch_files,
        )  # fmt: skip
        names = {one.name for one in ours}
        # Parts of files that were being written, and files to lock on Windows.
        return path.name in names or path.suffix == PART_SUFFIX or path.name.removesuffix(".lock") in names

    @property
    def _batch_files(self) -> set[Path]:
        """The rows and workflows of all batches, with the records of their rows."""
        return {*self.folder.glob(f"{self.rows.stem}*.jsonl"), *self.folder.glob(f"{self.workflow.stem}*.json")}

    @property
    def has_results(self) -> bool:
        """Whether a picture has been made or a reply recorded, which belong to the settings of the run."""
        return self.has_made_pictures or bool(read_replies(self.replies))

    @property
    def has_made_pictures(self) -> bool:
        """Whether a batch of this run has made a picture."""
        return any(record_problem(one) is None for one in read_records(self.records).values())

    @property
    def records(self) -> list[Path]:
        """The files with the records of the batches, which exist once they have started."""
        return sorted(self.folder.glob(f"{self.rows.stem}*.results.jsonl"))

    def start_again(self) -> None:
        """Remove what steps that have made nothing have left. Raises UniWorldError if another process is at work."""
        if self.replies.exists():
            unused(self.replies).close()
        clear_records(self.records, self.output)
        for file in (self._batch_files | {self.problems}) - set(self.records):
            file.unlink(missing_ok=True)

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
        if self.has_made_pictures:
            raise UniWorldError(f"'{self.folder}' has pictures of its own already. Choose another --out.")
        if self.workflow.exists():
            self.start_again()
        self.write_json(self._pictures_file, {"folder": str(folder.resolve())})

    def own_pictures(self) -> Path:
        """Return the folder for pictures made by this run. Raises UniWorldError if it has judged pictures made elsewhere."""
        if self._pictures_file.is_file() and read_replies(self.replies):
            raise UniWorldError(f"'{self.folder}' measures the pictures in '{self.pictures}'. Choose another --out.")
        return self._own_pictures

    def use_own_pictures(self) -> None:
        """Use the pictures that this run makes from now on."""
        self._pictures_file.unlink(missing_ok=True)

    def picture(self, item: BenchItem, sample: int) -> Path | None:
        """Return the file of a result; None if there is none."""
        base = self.pictures / item.name(sample)
        names = (base.with_name(base.name + extension) for extension in _EXTENSIONS)
        return next((path for path in names if path.is_file()), None)


def _hash_of(content: object) -> str:
    return hashlib.sha256(json_bytes(content)).hexdigest()


def json_bytes(content: object) -> bytes:
    """Return a JSON file of a run."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Made:
    """The results of a run: readable ones by item and sample, and the reasons why others are missing."""

    pictures: dict[tuple[str, int], Path]
    missing: dict[tuple[str, int], str]


def find_made(run: RunFolder, plan: BenchPlan) -> Made:
    """Find the pictures of a run."""
    failures = read_json_file(run.problems, "").get("failed") if run.problems.is_file() else {}
    if not isinstance(failures, dict):
        raise UniWorldError(f"'{run.problems}' is damaged. Remove it and run this step again.")
    sources = {one for item in plan.items for one in (item.picture, item.source) if one is not None}
    # They may have been moved since the run was planned.
    unusable = {one: problem for one in sources if (problem := picture_problem(Path(one))) is not None}
    pictures: dict[tuple[str, int], Path] = {}
    missing: dict[tuple[str, int], str] = {}
    for item, sample in plan.results:
        place = (item.id, sample)
        source = plan.missing.get(item.id) or unusable.get(str(item.picture)) or unusable.get(str(item.source))
        if source is not None:
            missing[place] = f"its source picture is unusable: {source}"
            continue
        path = run.picture(item, sample)
        problem = _no_picture(item, sample, missing) if path is None else picture_problem(path)
        if path is not None and problem is None and item.tiles > 1:
            problem = grid_problem(path)
        if path is None or problem is not None:
            missing[place] = str(failures.get(item.result_id(sample)) or problem)
        else:
            pictures[place] = path
    return Made(pictures, missing)


def _no_picture(item: BenchItem, sample: int, missing: Mapping[tuple[str, int], str]) -> str:
    """Return why there is no picture: an earlier turn may have none."""
    for turn in range(sample if item.turns else 0):
        if (item.id, turn) in missing:
            return f"turn {turn + 1} has no result ({missing[item.id, turn]})"
    return "there is no picture"


def rows_of(item: BenchItem, sample: int) -> list[tuple[str, int]]:
    """Return the id and the seed's number of each row that makes a result: one, or one for each tile of a grid."""
    row = item.result_id(sample)
    return [(row, sample)] if item.tiles == 1 else [(f"{row}/{tile}", tile) for tile in range(item.tiles)]


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
    """Hashes of files, computed once each. Raises UniWorldError for a file that cannot be read."""

    def __init__(self) -> None:
        self._found: dict[Path, str] = {}

    def __call__(self, path: Path) -> str:
        if path not in self._found:
            try:
                self._found[path] = sha256_file(path)
            except OSError as error:
                raise UniWorldError(
                    f"'{path}' cannot be read: {error.strerror}. Run the same command again."
                ) from error
        return self._found[path]
