"""The known benchmarks by name."""

from __future__ import annotations

from .....uniworld_core.errors import UniWorldError
from ..items import Suite
from ..shapes import ShapesSuite
from .dpg import DPGSuite
from .gedit import GEditSuite
from .geneval import GenEvalSuite
from .imgedit import ImgEditSuite, ImgEditUGESuite
from .imgedit_turns import ImgEditTurnsSuite
from .tifa import TIFASuite
from .unisandbox import UniSandboxSuite
from .wise import WISESuite

SUITES: dict[str, Suite] = {
    "imgedit": ImgEditSuite(),
    "imgedit_uge": ImgEditUGESuite(),
    "imgedit_multiturn": ImgEditTurnsSuite(),
    "gedit": GEditSuite(),
    "geneval": GenEvalSuite(),
    "wise": WISESuite(),
    "dpg": DPGSuite(),
    "tifa": TIFASuite(),
    "unisandbox": UniSandboxSuite(),
    "shapes": ShapesSuite(),
}


def suite_of(name: str) -> Suite:
    """Return a benchmark. Raises UniWorldError if the name is unknown."""
    if name not in SUITES:
        raise UniWorldError(f"There is no benchmark '{name}'. The benchmarks are: {', '.join(SUITES)}.")
    return SUITES[name]
