"""How a message of `uniworld chat` is painted: as the templates do, by noise levels or by revealing tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.sampling.cache import CACHES
from ....uniworld_core.sampling.solvers import SOLVERS
from ... import host
from ...pack.conditioning import EncodeCondition
from ...pack.sampling import NATIVE, LatentByAspect, Sampler, Scheduler
from ...pack.unipic import UniPicCondition, UniPicSampler
from ...pack.vae import VAEDecode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL import Image

    from ....uniworld_core import Reference
    from ...pack.wires import Latent


@dataclass(frozen=True)
class PaintSettings:
    """Settings of the pictures.

    Attributes:
        steps: number of steps or iterations; None for the default of the model's family.
        guidance: guidance of the sampler; None for the default of the model's family.
        solver, cache: one of `SOLVERS` and one of `CACHES`.
        area_side: area of the pictures, as the side of a square in pixels; 0 for the model's own.
        t5: also encode the last instruction with T5 and CLIP.
        loras: the LoRAs of the model, as the user named them; recorded with the pictures.
    """

    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    solver: str = SOLVERS[0]
    cache: str = CACHES[0]
    area_side: int = 0
    t5: bool = False
    loras: tuple[str, ...] = ()


def check_settings(model: Mapping[str, Any], settings: PaintSettings) -> None:
    """Raise UniWorldError if settings do not apply to a model."""
    if reveals_tokens(model) and (settings.solver != SOLVERS[0] or settings.cache != CACHES[0]):
        raise UniWorldError(
            f"{model['vlm'].family.name} reveals tokens, without solver and cache: leave out --solver and --cache."
        )


def reveals_tokens(model: Mapping[str, Any]) -> bool:
    """Whether a model has no noise levels, and reveals tokens instead."""
    return model["dit"].facts.shift is None


def steps_of(model: Mapping[str, Any], settings: PaintSettings) -> int:
    """Return the number of steps or iterations."""
    steps: int = model["vlm"].family.steps if settings.steps is None else settings.steps
    return steps


def paint_prompt(
    model: Mapping[str, Any], prompt: dict[str, Any], like: Sequence[Reference], settings: PaintSettings
) -> list[Image.Image]:
    """Paint the picture that a prompt asks for.

    Args:
        model: the outputs of Load UniWorld by name.
        prompt: arguments of UniWorld Condition.
        like: the pictures whose aspect ratio the new one gets.

    Raises:
        UniWorldError: the model cannot paint it.
        host.Interrupted: the user interrupted the run.
    """
    from ....uniworld_core.images.pictures import to_rgb

    painted = (_revealed if reveals_tokens(model) else _denoised)(model, prompt, like, settings)
    host.current().check_interrupt()
    return [to_rgb(image) for image in VAEDecode().execute(model["vae"], painted)[0]]


def _denoised(
    model: Mapping[str, Any], prompt: dict[str, Any], like: Sequence[Reference], settings: PaintSettings
) -> Latent:
    dit, steps = model["dit"], steps_of(model, settings)
    conditioning = EncodeCondition().execute(**prompt, text=model["text"] if settings.t5 else None)[0]
    square: dict[str, Any] = {"width": 1024, "height": 1024, "area_side": settings.area_side, "ratios": NATIVE}
    latent = LatentByAspect().execute(**square, batch_size=1, references=like, dit=dit)[0]
    (sigmas,) = Scheduler().execute(dit, latent, steps, 1.0)
    guidance = model["vlm"].family.guidance if settings.guidance is None else settings.guidance
    return Sampler().execute(
        dit, conditioning, latent, settings.seed, steps, guidance, 1.0, sigmas, settings.cache, settings.solver
    )[0]


def _revealed(
    model: Mapping[str, Any], prompt: dict[str, Any], like: Sequence[Reference], settings: PaintSettings
) -> Latent:
    """Paint with UniPic, which edits the picture of the prompt if there is one."""
    from ....uniworld_core.images.pictures import to_image

    family, dit, vae, side = model["vlm"].family, model["dit"], model["vae"], settings.area_side
    if len(like) > 1:
        raise UniWorldError(
            f"The message has {len(like)} pictures, and {family.name} edits one: name a single picture."
        )
    image = to_image([like[0].picture]) if like else None
    (conditioning,) = UniPicCondition().execute(dit, prompt["prompt"], "", side, image, vae)
    guidance = family.guidance if settings.guidance is None else settings.guidance
    steps = steps_of(model, settings)
    return UniPicSampler().execute(dit, conditioning, settings.seed, steps, guidance, "constant", 1.0, side, 1, vae)[0]
