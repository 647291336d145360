"""Check training data before a run: report all problems at once, and a summary of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...uniworld_core.editing.fitting import fit_before
from ...uniworld_core.editing.masks import edit_mask
from ...uniworld_core.errors import UniWorldError, counted
from ...uniworld_core.images.pictures import to_image
from ...uniworld_core.images.sizes import DEFAULT_AREA, DEFAULT_RATIOS, Size, size_by_aspect
from ...uniworld_core.prompts.text import check_prompt
from .annotations import is_painting, read_annotation, scan
from .published import BadData, Line, name_files, read_list, sample_of
from .samples import Sample
from .shard_samples import ShardSamples
from .shards import check_shards
from .threads import map_in_threads


@dataclass(frozen=True)
class DataSummary:
    """Counts of the data.

    Attributes:
        lines: lines of the list; 0 for shards, which contain only its paintings.
        annotations: annotations in all readable files.
        understanding: annotations that are questions with answers in words; training skips them.
        paintings: annotations of paintings.
        good: paintings without a problem.
        weighted: good paintings with an edit weight.
        references: {number of references: good paintings}.
        sizes: {painted size, "width x height" in pixels: good paintings}.
        whole_masks: weighted paintings whose target equals the reference, so that the whole picture counts as edited;
            None if masks were not computed.
        small_masks: weighted paintings whose edit is too small, which training skips; None if masks were not computed.
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
    """The result of `check`.

    Attributes:
        problems: one sentence each, in the order of the data.
        summary: counts of the data.
    """

    problems: tuple[str, ...]
    summary: DataSummary

    def to_json(self) -> dict[str, object]:
        """Return problems and summary as JSON values."""
        return {"problems": list(self.problems), "summary": asdict(self.summary)}

    def to_text(self) -> str:
        """Return problems and summary as text, without a trailing line break."""
        summary = self.summary
        lines = [*self.problems, ""] if self.problems else []
        understanding = f"{summary.understanding} of {summary.annotations} annotations in {summary.lines} lines"
        others = f"; {understanding} are questions with answers in words, skipped." if summary.lines else "."
        lines.append(f"{summary.good} of {summary.paintings} paintings are good ({summary.weighted} weighted){others}")
        lines += [f"  with {count} references: {often}" for count, often in summary.references.items()]
        lines += [f"  painted at {size}: {often}" for size, often in summary.sizes.items()]
        if summary.whole_masks is not None:
            lines.append(
                f"  edit masks: {summary.whole_masks} cover the whole picture because nothing differs, "
                f"{summary.small_masks} are too small"
            )
        count = len(self.problems)
        lines.append(f"{counted(count, 'problem')}." if count else "No problems.")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Finding:
    """The result of checking one painting: a sentence for each problem, the painted size, and the kind of mask."""

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
    """Check a list or a folder of shards: all annotations and all their pictures.

    Args:
        data: the list file, or the folder of shards.
        masks: also compute the edit mask of every weighted painting, at the painted size.
        area, ratios: area and aspect ratios of the painted pictures, as in training.
        workers: threads that decode pictures.
        progress: called with the number of paintings checked so far.

    Raises:
        UniWorldError: the area or the set of ratios is invalid, or the folder contains no shards. All other problems are
            in the report.
    """
    size_by_aspect(1, 1, area, ratios)
    data, lines, counts = Path(data), list[Line](), _Counts()
    if data.is_dir():
        shards = ShardSamples(data)
        problems, found = list(check_shards(data)), _in_shards(shards, counts)
    else:
        try:
            lines, problems = read_list(data)
        except BadData as error:
            return DataReport(tuple(error.problems), DataSummary())
        found = _in_list(data, lines, counts)

    def inspect(item: Sample | str) -> tuple[Sample | str, _Finding]:
        return item, _Finding((item,)) if isinstance(item, str) else _inspect(item, masks, area, ratios)

    done = 0
    for item, finding in map_in_threads(inspect, found, workers):
        problems.extend(finding.problems)
        if isinstance(item, str):
            continue
        counts.add(item, finding)
        done += 1
        if progress is not None:
            progress(done)
    if not counts.paintings and not problems:
        problems.append(f"{data.name}: none of the annotations is a painting, so there is nothing to train on.")
    return DataReport(tuple(problems), counts.summary(len(lines), masks))


@dataclass
class _Counts:
    """Running counts."""

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


def _in_shards(samples: ShardSamples, counts: _Counts) -> Iterator[Sample | str]:
    """Yield the paintings of shards, or the problem in place of an invalid one."""
    counts.annotations = counts.paintings = len(samples)
    for index in range(len(samples)):
        try:
            yield samples[index]
        except UniWorldError as error:
            yield str(error)


def _in_list(list_file: Path, lines: list[Line], counts: _Counts) -> Iterator[Sample | str]:
    """Yield the paintings of a list, or the problem in place of an invalid painting or file."""
    for line, name in zip(lines, name_files(lines)):
        try:
            for placed in scan(line.file.read_bytes(), line.name):
                counts.annotations += 1
                if not is_painting(placed.value):
                    continue
                counts.paintings += 1
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


def _inspect(sample: Sample, masks: bool, area: int, ratios: str) -> _Finding:
    """Check a painting's prompt and decode its pictures."""
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
        problem = f"{sample.key}: the edit covers {float(mask.share):.5f} of the picture, too small; training skips it."
        return _Finding((problem,), size, small_mask=True)
    return _Finding((), size, whole_mask=bool(mask.whole))
