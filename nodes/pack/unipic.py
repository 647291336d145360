"""UniWorld UniPic Condition and Sampler: masked autoregression, which has settings of its own and no noise levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ...uniworld_core.errors import UniWorldError
from .. import host
from ..declare import Input, Inputs, Node, Output, by_id, validation_result
from .conditioning import PROMPT, conditioning_of, to_condition
from .latents import to_latent
from .sampling import warn_of_size

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.families.unipic.painting import Revealed
    from ...uniworld_core.images.sizes import Size
    from ...uniworld_core.sampling.condition import Condition
    from ...uniworld_core.sampling.latents import RGB
    from .wires import Conditioning, DiTWire, Latent, VAEWire

_DIT = Input.wire("dit", "UNIWORLD_DIT", "UniPic from Load UniWorld.")
# Steps of the progress bar, which counts work: late iterations take several times longer than early ones.
_PROGRESS = 200


def _side_input(tooltip: str) -> Input:
    return Input.integer("side", tooltip, default=0, min=0, max=4096, step=16)


class UniPicCondition(Node):
    """Encode a prompt for UniPic, with the image that it edits."""

    ID = "UniWorldUniPicCondition"
    DISPLAY_NAME = "UniWorld UniPic Condition"
    SEARCH_ALIASES = ["UniPic prompt", "text encode", "negative prompt", "edit prompt", "Skywork"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = "Encodes a prompt for UniWorld UniPic Sampler. With an image, it is an edit of the square in the middle of the image."
    OUTPUTS = (Output("conditioning", "CONDITIONING", "For UniWorld UniPic Sampler."),)

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None = None, negative: str | None = None) -> bool | str:
        from ...uniworld_core.families.unipic.prompts import check_words

        checked = validation_result(check_words, prompt)
        if checked is True and isinstance(negative, str) and negative.strip():
            return validation_result(check_words, negative, "negative prompt")
        return checked

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.families.unipic.prompts import EDIT_NEGATIVE, NEGATIVE

        return (
            _DIT,
            PROMPT,
            Input.text(
                "negative",
                f"The prompt that guidance moves away from. Empty selects the published one: '{NEGATIVE}', or "
                f"'{EDIT_NEGATIVE}' for an edit.",
            ),
            _side_input(
                "Side in pixels at which the image is read and painted; 0 for the model's native side. For edits only."
            ),
            Input.wire(
                "image", "IMAGE", "The image to edit, one image. Leave it out for text to image.", optional=True
            ),
            Input.wire("vae", "UNIWORLD_VAE", "The VAE from Load UniWorld. Needed with an image.", optional=True),
        )

    def execute(
        self,
        dit: DiTWire,
        prompt: str,
        negative: str,
        side: int,
        image: Tensor | None = None,
        vae: VAEWire | None = None,
    ) -> tuple[Conditioning]:
        from ...uniworld_core.families.unipic.condition import encode_requests
        from ...uniworld_core.families.unipic.config import GUIDANCE, UNIPIC_LATENTS
        from ...uniworld_core.families.unipic.prompts import Request, check_words
        from ...uniworld_core.images.pictures import to_rgb
        from ...uniworld_core.images.sizes import check_size

        _check_unipic(dit, self.DISPLAY_NAME)
        # Everything that needs no weights is checked before they are loaded.
        size = check_size(side, side, UNIPIC_LATENTS.unit) if side else None
        check_words(prompt)
        picture, codec = None, None
        if image is not None:
            if len(image) != 1:
                raise UniWorldError(f"{self.DISPLAY_NAME} edits one image, but the batch has {len(image)}: choose one.")
            codec = _vae_of_unipic(vae, dit, self.DISPLAY_NAME).on_device()
            picture = to_rgb(image[0])
        condition = encode_requests(dit.on_device(), codec, [Request(prompt, picture)], size, negative.strip() or None)  # type: ignore[arg-type]
        marked = replace(condition, family=dit.facts.family)
        return (conditioning_of(marked, GUIDANCE, dit.facts.latent_format),)


class UniPicSampler(Node):
    """Paint a latent by revealing its tokens."""

    ID = "UniWorldUniPicSampler"
    DISPLAY_NAME = "UniWorld UniPic Sampler"
    SEARCH_ALIASES = ["UniPic", "masked autoregression", "MAR", "generate", "Skywork"]
    CATEGORY = "UniWorld/sampling"
    DESCRIPTION = (
        "Paints a latent with UniPic: every iteration reveals more tokens of the image. Item i of a batch uses seed + i. A "
        "token has the same noise in any batch and with any number of iterations."
    )
    OUTPUTS = (Output("latent", "LATENT", "The painted latent, for UniWorld VAE Decode."),)

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.families.unipic.config import GUIDANCE, ITERATIONS, SCHEDULES, TEMPERATURE

        return (
            _DIT,
            Input.wire("conditioning", "CONDITIONING", "From UniWorld UniPic Condition."),
            Input.seed("seed", "The same seed gives the same image on the same machine."),
            Input.integer(
                "iterations",
                f"Number of iterations, at most one per 16x16 pixels (published: {ITERATIONS}).",
                default=ITERATIONS,
                min=1,
                max=4096,
            ),
            Input.number(
                "guidance",
                f"How far to move away from the negative prompt (published: {GUIDANCE}). 1 ignores it and takes about half the "
                "time.",
                default=GUIDANCE,
                min=0.0,
                max=100.0,
                step=0.1,
            ),
            Input.choice(
                "schedule", SCHEDULES, "linear raises the guidance from 1 as tokens are revealed.", default=SCHEDULES[0]
            ),
            Input.number(
                "temperature",
                f"Factor of the noise in the diffusion of each token (published: {TEMPERATURE}).",
                default=TEMPERATURE,
                min=0.0,
                max=10.0,
                step=0.05,
            ),
            _side_input(
                "Side of the square image in pixels; 0 for the side of the edited image, or else the native one."
            ),
            Input.integer("batch_size", "Number of images to generate at once.", default=1, min=1, max=64),
            Input.wire(
                "vae",
                "UNIWORLD_VAE",
                "The VAE from Load UniWorld, for previews in color. Without it they show brightness.",
                optional=True,
            ),
        )

    def execute(
        self,
        dit: DiTWire,
        conditioning: Conditioning,
        seed: int,
        iterations: int,
        guidance: float,
        schedule: str,
        temperature: float,
        side: int,
        batch_size: int,
        vae: VAEWire | None = None,
    ) -> tuple[Latent]:
        from ...uniworld_core.families.unipic.painting import check_iterations, paint
        from ...uniworld_core.sampling.sampler import sequence_length

        _check_unipic(dit, self.DISPLAY_NAME)
        latents = dit.facts.latent_format
        condition = to_condition(conditioning, latents)
        condition.check_family(dit.facts.family)
        size = _size(condition, dit, side)
        shape = latents.shape(batch_size, size)
        check_iterations(iterations, shape)
        warn_of_size(dit.facts.native_side, size.height, size.width)
        rgb = latents.rgb if vae is None else _vae_of_unipic(vae, dit, self.DISPLAY_NAME).on_device().rgb  # type: ignore[attr-defined]
        # Guidance doubles the rows.
        tokens = 2 * batch_size * sequence_length(condition, latents, shape)
        painted = paint(
            dit.on_device(working_memory=tokens * dit.facts.token_bytes),  # type: ignore[arg-type]
            condition,
            size,
            [(seed + i) % 2**64 for i in range(batch_size)],
            iterations,
            guidance,
            schedule=schedule,
            temperature=temperature,
            callback=_report(rgb),
        )
        # Results wait in system RAM, as in ComfyUI: the host caches them between runs.
        return (to_latent(painted.cpu(), latents),)


def _check_unipic(dit: DiTWire, node: str) -> None:
    """Raise UniWorldError if a model is not UniPic."""
    from ...uniworld_core.families.unipic.config import UNIPIC_LATENTS

    if dit.facts.latent_format.name != UNIPIC_LATENTS.name:
        raise UniWorldError(
            f"{node} takes UniPic, but dit is a model of {dit.facts.family}: choose a UniPic in Load UniWorld, or use UniWorld "
            "Condition and UniWorld Sampler."
        )


def _vae_of_unipic(vae: VAEWire | None, dit: DiTWire, node: str) -> VAEWire:
    if vae is None:
        raise UniWorldError(f"{node} has an image but no VAE: connect vae of Load UniWorld.")
    if vae.facts.latent_format.name != dit.facts.latent_format.name:
        raise UniWorldError(
            f"The VAE of {node} belongs to {vae.facts.family}, and its model to {dit.facts.family}: connect vae and dit of the "
            "same Load UniWorld."
        )
    return vae


def _size(condition: Condition, dit: DiTWire, side: int) -> Size:
    """Return the size to paint: the given side, or that of the edited picture, or the native one."""
    from ...uniworld_core.images.sizes import Size

    if side or not condition.references:
        side = side or dit.facts.native_side
        return Size(side, side)
    return dit.facts.latent_format.size(condition.references[0].shape)


def _report(rgb: RGB) -> Callable[[Revealed], None]:
    """Return a callback that reports the work and previews, and raises if the run is cancelled."""
    from ...uniworld_core.sampling.latents import preview

    here = host.current()
    progress, done = here.progress(_PROGRESS), 0

    def report(step: Revealed) -> None:
        nonlocal done
        here.check_interrupt()
        now = round(step.work * _PROGRESS)
        if step.latents is not None and step.visible is not None:
            progress.update(now, preview(step.latents[0], rgb, visible=step.visible[0]))
        elif now > done:
            progress.update(now)
        done = now

    return report


NODES = by_id(UniPicCondition, UniPicSampler)
