"""The noise levels of a model folder: `scheduler/scheduler_config.json` in diffusers layout."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from ..errors import UniWorldError, shown
from ..loading.settings import Rule, choice, exactly, number, optional, read_json, take, whole
from .flow import Shift

_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_TOKENS, _MU = whole(1, 2**20), number(-10, 10)
# {field of `Shift`: key in the file}.
_KEYS = {
    "base_tokens": "base_image_seq_len",
    "max_tokens": "max_image_seq_len",
    "base_mu": "base_shift",
    "max_mu": "max_shift",
    "terminal": "shift_terminal",
}
_OTHERS = "because the others give other noise levels"
_RULES: dict[str, Rule] = {
    "base_image_seq_len": _TOKENS,
    "max_image_seq_len": _TOKENS,
    "base_shift": _MU,
    "max_shift": _MU,
    "shift_terminal": optional(number(1e-6, 0.999)),
    "use_dynamic_shifting": exactly(True, "because the shift depends on the size of the picture"),
    "time_shift_type": choice("exponential"),
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"),
        optional(exactly(False, _OTHERS)),
    ),
}


def read_shift(file: Path, default: Shift) -> Shift:
    """Read the shift of the noise levels.

    Args:
        file: the scheduler's configuration.
        default: values for keys that the file does not have.

    Raises:
        UniWorldError: the file is missing or damaged, of another scheduler, or has an invalid value.
    """
    raw = read_json(file)
    if raw.get("_class_name") != _SCHEDULER:
        raise UniWorldError(
            f"{file} has _class_name {shown(raw.get('_class_name'))}, expected {_SCHEDULER!r}: copy the file of the published "
            "model."
        )
    values = take(raw, _RULES, str(file), ("use_dynamic_shifting",))
    made = {one.name: values.get(_KEYS[one.name], getattr(default, one.name)) for one in fields(Shift)}
    if made["base_tokens"] >= made["max_tokens"]:
        raise UniWorldError(
            f"{file} has base_image_seq_len {made['base_tokens']} and max_image_seq_len {made['max_tokens']}; the first must be "
            "less: copy the file again."
        )
    return Shift(**made)
