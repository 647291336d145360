"""Looking through published data before training: everything that is wrong with it at once, and what is in it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...uniworld_core.editing.masks import edit_mask, fit_before
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.images.pictures import to_image
from ...uniworld_core.images.sizes import DEFAULT_AREA, DEFAULT_RATIOS, Size, size_by_aspect
from ...uniworld_core.prompts.text import check_prompt
from .annotations import is_painting, read_annotation, scan
from .published import BadData, Line, name_files, read_list, sample_of
from .samples import Sample
from .shard_samples import ShardSamples
from .shards import check_shards

# Pictures that wait to be decoded, for each thread: enough to keep it busy, too few to fill the memory.
_WAITING = 8


@dataclass(frozen=True)
class DataSummary:
    """What is in the data.

    Attributes:
        lines: lines of the list; 0 of shards, which hold its paintings alone.
        annotations: in all files that can be read.
        understanding: annotations that are questions with answers in words, which painting leaves out.
        paintings: annotations of paintings.
        good: paintings without a problem.
        weighted: good paintings whose edited part weighs more.
        references: good paintings by their number of references.
        sizes: good paintings by the size that is painted, "width x height" in pixels.
        whole_masks: weighted paintings where nothing differs, so the whole picture counts as edited; None if not asked.
        small_masks: weighted paintings whose edit is a speck, which training skips; None if not asked.
    """

    lines: int = 0
    annotations: int = 0
    understanding: int = 0
    paintings: int = 0
    good: int = 0
    weighted: int = 0
    references: dict[int, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    whole_masks: int | None = None
    small_masks: int | None = None


@dataclass(frozen=True)
class DataReport:
    """What `check` found.

    Attributes:
        problems: a sentence each, in the order of the data.
        summary: what is in it.
    """

    problems: tuple[str, ...]
    summary: DataSummary

    def to_json(self) -> dict[str, object]:
        """Problems and summary as plain JSON values."""
        return {"problems": list(self.problems), "summary": asdict(self.summary)}

    def to_text(self) -> str:
        """Problems and summary to be read, without a line break at the end."""
        told = self.summary
        lines = [*self.problems, ""] if self.problems else []
        words = f"{told.understanding} of {told.annotations} annotations in {told.lines} lines"
        others = f"; {words} are questions with answers in words, left out." if told.lines else "."
        lines.append(f"{told.good} of {told.paintings} paintings are good ({told.weighted} weighted){others}")
        lines += [f"  with {count} references: {often}" for count, often in told.references.items()]
        lines += [f"  painted at {size}: {often}" for size, often in told.sizes.items()]
        if told.whole_masks is not None:
            lines.append(
                f"  edit masks: {told.whole_masks} cover all since nothing differs, {told.small_masks} are specks"
            )
        count = len(self.problems)
        lines.append("No problems." if not count else "1 problem." if count == 1 else f"{count} problems.")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Finding:
    """What a painting's pictures told: a sentence for each problem, the painted size, and its mask."""

    problems: tuple[str, ...]
    size: Size | None = None
    whole_mask: bool = False
    small_mask: bool = False


def check(
    data: str | Path,
    masks: bool = False,
    area: int = DEFAULT_AREA,
    ratios: str = DEFAULT_RATIOS,
    workers: int = 4,
    progress: Callable[[int], None] | None = None,
) -> DataReport:
    """Read a list or a folder of shards, all annotations and all their pictures.

    Args:
        data: the list, or the folder.
        masks: also compute the edit mask of every weighted painting, at the size that is painted.
        area, ratios: what training will paint, for the sizes.
        workers: threads that decode.
        progress: told how many paintings were looked at.

    Raises:
        UniWorldError: the area or the set of ratios is wrong, or the folder holds no shards. All else that is wrong with
            the data is in the report.
    """
    size_by_aspect(1, 1, area, ratios)
    data, lines, seen = Path(data), list[Line](), _Seen()
    if data.is_dir():
        shards = ShardSamples(data)
        problems, found = list(check_shards(data)), _in_shards(shards, seen)
    else:
        try:
            lines, problems = read_list(data)
        except BadData as error:
            return DataReport(tuple(error.problems), DataSummary())
        found = _in_list(data, lines, seen)

    def look(item: Sample | str) -> tuple[Sample | str, _Finding]:
        return item, _Finding((item,)) if isinstance(item, str) else _look(item, masks, area, ratios)

    done = 0
    for item, finding in _in_threads(look, found, workers):
        problems.extend(finding.problems)
        if isinstance(item, str):
            continue
        seen.add(item, finding)
        done += 1
        if progress is not None:
            progress(done)
    if not seen.paintings and not problems:
        problems.append(f"{data.name}: no annotation is a painting, so there is nothing to train on.")
    return DataReport(tuple(problems), seen.summary(len(lines), masks))


@dataclass
class _Seen:
    """What was counted so far."""

    annotations: int = 0
    paintings: int = 0
    weighted: int = 0
    whole_masks: int = 0
    small_masks: int = 0
    references: Counter[int] = field(default_factory=Counter)
    sizes: Counter[Size] = field(default_factory=Counter)

    def add(self, sample: Sample, found: _Finding) -> None:
        self.small_masks += found.small_mask
        if found.size is not None and not found.problems:
            self.weighted += sample.weighted
            self.whole_masks += found.whole_mask
            self.references[len(sample.references)] += 1
            self.sizes[found.size] += 1

    def summary(self, lines: int, masks: bool) -> DataSummary:
        return DataSummary(
            lines=lines,
            annotations=self.annotations,
            understanding=self.annotations - self.paintings,
            paintings=self.paintings,
            good=self.sizes.total(),
            weighted=self.weighted,
            references=dict(sorted(self.references.items())),
            sizes={f"{size.width}x{size.height}": count for size, count in self.sizes.most_common()},
            whole_masks=self.whole_masks if masks else None,
            small_masks=self.small_masks if masks else None,
        )


def _in_shards(samples: ShardSamples, seen: _Seen) -> Iterator[Sample | str]:
    """The paintings of shards, and in the place of each that is of no use, why."""
    seen.annotations = seen.paintings = len(samples)
    for index in range(len(samples)):
        try:
            yield samples[index]
        except UniWorldError as error:
            yield str(error)


def _in_list(list_file: Path, lines: list[Line], seen: _Seen) -> Iterator[Sample | str]:
    """The paintings of a list, and in the place of each one or file that cannot be read, why."""
    for line, name in zip(lines, name_files(lines)):
        try:
            for placed in scan(line.file.read_bytes(), line.name):
                seen.annotations += 1
                if not is_painting(placed.value):
                    continue
                seen.paintings += 1
                key = f"{name}#{placed.number}"
                try:
                    sample = sample_of(key, read_annotation(placed.value), line)
                except UniWorldError as error:
                    yield f"{key}: {error}"
                    continue
                yield sample
        except UniWorldError as error:
            yield f"{list_file.name}, line {line.number}: {error}"
        except OSError as error:
            yield f"{list_file.name}, line {line.number}: '{line.name}' cannot be read: {error.strerror}."


def _look(sample: Sample, masks: bool, area: int, ratios: str) -> _Finding:
    """Read a painting's prompt, and decode its pictures."""
    problems: list[str] = []
    pictures = []
    try:
        check_prompt(sample.prompt)
    except UniWorldError as error:
        problems.append(f"{sample.key}: {error}")
    for source in (*sample.references, sample.target):
        try:
            pictures.append(source.open())
        except UniWorldError as error:
            problems.append(f"{sample.key}: {error}")
    if problems:
        return _Finding(tuple(problems))
    *references, target = pictures
    size = size_by_aspect(target.height, target.width, area, ratios)
    if not masks or not sample.weighted or not references:
        return _Finding((), size)
    after = to_image([target.resize((size.width, size.height))])
    mask = edit_mask([fit_before(to_image([reference]), after) for reference in references], after)
    if bool(mask.too_small):
        speck = f"{sample.key}: the edit covers {float(mask.share):.5f} of the picture, a speck; training skips it."
        return _Finding((speck,), size, small_mask=True)
    return _Finding((), size, whole_mask=bool(mask.whole))


def _in_threads(
    work: Callable[[Sample | str], tuple[Sample | str, _Finding]], items: Iterable[Sample | str], workers: int
) -> Iterator[tuple[Sample | str, _Finding]]:
    """The results in order, with few items in the threads at a time, however many there are."""
    waiting: deque[Future[tuple[Sample | str, _Finding]]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= _WAITING * max(1, workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
