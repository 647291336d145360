"""The judges of `uniworld bench`: which one the options choose, and how it is opened."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.loading.shipped import shipped_model
from .items import Suite
from .judging.client import OPENAI_URL, Judge, OpenAIJudge, check_server
from .judging.cost import parse_price
from .judging.identity import detector_name, identity_of
from .judging.replies import by_key, read_replies
from .judging.run import DETECTOR, LOCAL
from .judging.vqa import VQA, ProgramVQA, RecordedVQA, program_words
from .plan import BenchPlan
from .run_folder import RunFolder

NO_JUDGE = "none"
# A file of answers may lack many; the other answers are recorded all the same.
_ALL_FAILURES = 10**9


def local_folder(judge: str) -> Path:
    """Return the folder that `local:FOLDER` names: a path, or the name of a shipped model."""
    name = judge.removeprefix(LOCAL)
    shipped = shipped_model(name)
    return Path(name if shipped is None else shipped.checkpoint)


@dataclass(frozen=True)
class ChosenJudge:
    """A judge before it is opened.

    Attributes:
        server: what the settings of the run record: an address, or the kind of a judge in this process.
        parallel: number of requests at a time; None leaves the choice to the user.
        max_failures: failures in a row after which the judge is out of order; None for the default.
    """

    model: str
    server: str
    open: Callable[[], Judge]
    parallel: int | None = None
    max_failures: int | None = None


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a judge."""
    parser.add_argument(
        "--judge",
        default=NO_JUDGE,
        metavar="URL",
        help='a server with OpenAI\'s API, "openai", "detector" for GenEval, "vqa" for DPG-Bench and TIFA, '
        "local:FOLDER for a model in this process, or none (default)",
    )
    parser.add_argument("--vqa", type=Path, metavar="FILE", help="answers of a VQA model, as JSON Lines")
    parser.add_argument(
        "--vqa-command", metavar="COMMAND", help="a program that answers questions, in an environment of its own"
    )
    parser.add_argument(
        "--detector",
        type=Path,
        metavar="PATH",
        help="the detector, Mask2Former for COCO: a folder in transformers' layout, or the file of mmdet that GenEval uses",
    )
    parser.add_argument(
        "--clip", type=Path, metavar="DIR", help="folder of the CLIP that classifies colors for the detector"
    )
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="device of the detector or the local judge (default: cpu)"
    )
    parser.add_argument("--judge-model", metavar="NAME", help="name of the judge model")


def check_judge(arguments: argparse.Namespace) -> None:
    """Check the options of the judge, before anything is read or paid for. Raises UniWorldError."""
    judge = arguments.judge
    if arguments.step == "judge" and judge == NO_JUDGE:
        raise UniWorldError("Pass --judge with the address of a server, such as http://127.0.0.1:8000/v1, or openai.")
    if judge == DETECTOR and (arguments.detector is None or arguments.clip is None):
        raise UniWorldError("--judge detector needs two models. Add --detector PATH and --clip DIR.")
    if judge != VQA and (arguments.vqa is not None or arguments.vqa_command is not None):
        raise UniWorldError("--vqa and --vqa-command belong to --judge vqa. Add it, or omit them.")
    if arguments.vqa is not None and arguments.vqa_command is not None:
        raise UniWorldError("--vqa and --vqa-command exclude each other: the answers exist, or are made now.")
    if arguments.vqa_command is not None:
        program_words(arguments.vqa_command)
    questions_only = judge == VQA and arguments.vqa is None and arguments.vqa_command is None
    if judge.startswith(LOCAL):
        if not local_folder(judge).is_dir():
            raise UniWorldError(f"--judge '{judge}' names no folder. Write local: and the folder of the model.")
        if arguments.judge_model is not None or arguments.temperature is not None:
            raise UniWorldError("--judge-model and --temperature are for servers: a local judge is greedy. Omit them.")
    elif judge not in (NO_JUDGE, DETECTOR) and not questions_only and not arguments.judge_model:
        raise UniWorldError("--judge needs the name of the model. Add --judge-model, such as gpt-4.1.")
    if arguments.max_cost is not None and arguments.price is None:
        raise UniWorldError("--max-cost needs the price of tokens. Add --price IN,OUT.")
    if arguments.price is not None:
        parse_price(arguments.price)


def check_ready(arguments: argparse.Namespace, run: RunFolder) -> None:
    """Check that the judge can be opened, before the pictures for it are made. Loads no model, and sends nothing.

    A run with replies may need no others, and then neither key nor program.

    Raises:
        UniWorldError: a file, a program, the key or a package is missing, or the address is invalid.
    """
    judge, recorded = arguments.judge, bool(read_replies(run.replies))
    if judge == DETECTOR:
        detector_name(arguments.detector, arguments.clip)
    elif judge.startswith(LOCAL):
        identity_of(local_folder(judge))
    elif judge == VQA:
        if arguments.vqa is not None and not arguments.vqa.is_file():
            raise UniWorldError(f"--vqa '{arguments.vqa}' is not a file. Check the path.")
        words = [] if arguments.vqa_command is None else program_words(arguments.vqa_command)
        if words and not recorded and shutil.which(words[0]) is None:
            raise UniWorldError(f"--vqa-command '{words[0]}' is not a program that can be started. Check its path.")
    elif judge != NO_JUDGE:
        check_server(judge, with_key=not recorded)


def check_kind(judge: str, suite: Suite) -> None:
    """Raise UniWorldError if a benchmark has another kind of judge, or none."""
    if judge == NO_JUDGE:
        return
    if not suite.scored:
        raise UniWorldError(f"{suite.title} has no published scorer: people compare the images. Omit --judge.")
    if suite.exact:
        raise UniWorldError(f"{suite.title} needs no judge. Omit --judge; `uniworld bench score` computes the scores.")
    if suite.by_detector != (judge == DETECTOR):
        wanted = "a detector. Pass --judge detector" if suite.by_detector else "a language model. Pass its server"
        raise UniWorldError(f"The judge of {suite.title} is {wanted}.")
    if judge == VQA and suite.vqa is None:
        raise UniWorldError(f"{suite.title} has no questions for a VQA model. Pass the server of a language model.")


def choose_judge(arguments: argparse.Namespace, run: RunFolder, plan: BenchPlan) -> ChosenJudge:
    """Return the judge that the options name. Raises UniWorldError if the benchmark has another kind of judge."""
    kind, model = arguments.judge, arguments.judge_model
    check_kind(kind, plan.suite)
    if kind == DETECTOR:
        return _detector(arguments)
    if kind.startswith(LOCAL):
        return _local(arguments)
    if kind != VQA:
        server = OPENAI_URL if kind == "openai" else kind
        return ChosenJudge(model, server, lambda: OpenAIJudge(kind, model, arguments.timeout))
    if arguments.vqa_command is not None:
        return ChosenJudge(model, VQA, lambda: ProgramVQA(arguments.vqa_command, model, arguments.timeout), parallel=1)
    recorded = RecordedVQA(arguments.vqa, model, by_key(read_replies(run.replies)))
    return ChosenJudge(model, VQA, lambda: recorded, parallel=1, max_failures=_ALL_FAILURES)


def _local(arguments: argparse.Namespace) -> ChosenJudge:
    from .judging.local import LocalJudge  # it imports torch

    folder = local_folder(arguments.judge)
    return ChosenJudge(identity_of(folder), LOCAL, lambda: LocalJudge(folder, arguments.device), parallel=1)


def _detector(arguments: argparse.Namespace) -> ChosenJudge:
    from .judging.detector import DetectorJudge  # it imports torch

    name = detector_name(arguments.detector, arguments.clip)
    return ChosenJudge(
        name, DETECTOR, lambda: DetectorJudge(arguments.detector, arguments.clip, arguments.device), parallel=1
    )
