"""Empty latent, scheduler and sampler: from a condition to a painted latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import host
from ..declare import Input, Inputs, Node, Output, by_id
from .conditioning import guidance_input, to_condition
from .latents import samples_of, to_latent

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.prompts.reference import References
    from ...uniworld_core.sampling.flow import Step
    from ...uniworld_core.sampling.latents import RGB
    from .wires import Conditioning, DiTWire, Latent

_DIT = Input.wire("dit", "UNIWORLD_DIT", "The DiT from Load UniWorld.")
_DENOISE = Input.number(
    "denoise",
    "1 paints from pure noise; less keeps more of the latent that comes in.",
    default=1.0,
    min=0.01,
    max=1.0,
    step=0.01,
)


def _steps() -> Input:
    from ...uniworld_core.families.uniworld_v1.painting import STEPS

    return Input.integer("steps", f"How many steps are taken (published: {STEPS}).", default=STEPS, min=1, max=1000)


class LatentByAspect(Node):
    """The empty latent of the size that UniWorld paints best."""

    ID = "UniWorldEmptyLatent"
    DISPLAY_NAME = "UniWorld Empty Latent"
    SEARCH_ALIASES = ["empty latent", "aspect ratio", "size", "resolution", "latent by aspect"]
    CATEGORY = "UniWorld/latent"
    DESCRIPTION = (
        "Chooses the nearest of a set of aspect ratios at the wanted area, as the published program does, and gives an empty "
        "latent of that size. The aspect is that of the references or the image if one is wired, else width to height."
    )
    OUTPUTS = (
        Output("latent", "LATENT", "An empty latent of that size."),
        Output("width", "INT", "Width in pixels."),
        Output("height", "INT", "Height in pixels."),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.images.sizes import DEFAULT_RATIOS, DEFAULT_SIDE, RATIO_SETS, STRIDE

        def side(name: str, tooltip: str) -> Input:
            return Input.integer(name, tooltip, default=DEFAULT_SIDE, min=1, max=16384, step=1)

        return (
            side("width", "Width of the aspect; used where neither image nor references are wired."),
            side("height", "Height of the aspect; used where neither image nor references are wired."),
            Input.integer(
                "area_side",
                "The picture has about the area of a square with this side, in pixels. 0: what the model wired to dit was "
                f"made for; without one, {DEFAULT_SIDE}, as UniWorld-V1.",
                default=0,
                min=0,
                max=4096,
                step=STRIDE,
            ),
            Input.choice(
                "ratios",
                RATIO_SETS,
                f"The set of aspect ratios to choose from (published: {len(RATIO_SETS[DEFAULT_RATIOS])}).",
                default=DEFAULT_RATIOS,
            ),
            Input.integer("batch_size", "How many pictures to paint at once.", default=1, min=1, max=64),
            Input.wire("image", "IMAGE", "Take the aspect of this picture.", optional=True),
            Input.wire(
                "references", "UNIWORLD_REFERENCE", "Take the mean aspect of the first two references.", optional=True
            ),
            Input.wire(
                "dit",
                "UNIWORLD_DIT",
                "The DiT from Load UniWorld, for its area where area_side is 0.",
                optional=True,
            ),
        )

    def execute(
        self,
        width: int,
        height: int,
        area_side: int,
        ratios: str,
        batch_size: int,
        image: Tensor | None = None,
        references: References | None = None,
        dit: DiTWire | None = None,
    ) -> tuple[Latent, int, int]:
        import torch

        from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS
        from ...uniworld_core.images.sizes import DEFAULT_SIDE, mean_size, size_by_aspect

        if references:
            # Of two references, as the published program sizes an edit (serve/cli.py).
            height, width = mean_size([(ref.picture.height, ref.picture.width) for ref in references[:2]])
        elif image is not None:
            height, width = image.shape[1], image.shape[2]
        side = area_side or (DEFAULT_SIDE if dit is None else dit.facts.native_side)
        size = size_by_aspect(height, width, side * side, ratios)
        latent_format = FLUX_LATENTS if dit is None else dit.facts.latent_format
        return to_latent(torch.zeros(latent_format.shape(batch_size, size)), latent_format), size.width, size.height


class Scheduler(Node):
    """Noise levels with FLUX's shift for the picture's size."""

    ID = "UniWorldFlowScheduler"
    DISPLAY_NAME = "UniWorld Scheduler"
    SEARCH_ALIASES = ["sigmas", "noise schedule", "flow shift", "FLUX scheduler"]
    CATEGORY = "UniWorld/sampling"
    DESCRIPTION = (
        "The published noise levels: evenly spaced, shifted by the number of packed tokens of the latent. "
        "For UniWorld Sampler, or for ComfyUI's custom samplers."
    )
    OUTPUTS = (Output("sigmas", "SIGMAS", "Noise levels, one more than steps, ending in 0."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return _DIT, Input.wire("latent", "LATENT", "A latent of the size to paint."), _steps(), _DENOISE

    def execute(self, dit: DiTWire, latent: Latent, steps: int, denoise: float) -> tuple[Tensor]:
        from ...uniworld_core.sampling.flow import schedule

        samples = samples_of(latent, dit.facts.latent_format, self.DISPLAY_NAME)
        return (schedule(steps, dit.facts.latent_format.token_count(samples.shape), dit.facts.shift, denoise),)


class Sampler(Node):
    """The DiT paints."""

    ID = "UniWorldSampler"
    DISPLAY_NAME = "UniWorld Sampler"
    SEARCH_ALIASES = ["KSampler", "denoise", "DiT", "generate", "edit image", "FLUX"]
    CATEGORY = "UniWorld/sampling"
    DESCRIPTION = (
        "Paints a latent from the condition with the checkpoint's DiT. Item i of a batch takes seed + i, so that each "
        "picture of a batch can be painted again alone. A noise mask on the latent keeps what is outside it."
    )
    OUTPUTS = (Output("latent", "LATENT", "The painted latent: for UniWorld VAE Decode."),)

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE

        return (
            _DIT,
            Input.wire("conditioning", "CONDITIONING", "From UniWorld Condition."),
            Input.wire("latent", "LATENT", "Gives the size, and with denoise under 1 the picture to start from."),
            Input.seed("seed", "The same seed gives the same picture on the same machine."),
            _steps(),
            guidance_input(
                f"FLUX's embedded guidance (published: {GUIDANCE}); takes the place of the conditioning's own."
            ),
            _DENOISE,
            Input.wire("sigmas", "SIGMAS", "Noise levels to follow instead of steps and denoise.", optional=True),
        )

    def execute(
        self,
        dit: DiTWire,
        conditioning: Conditioning,
        latent: Latent,
        seed: int,
        steps: int,
        guidance: float,
        denoise: float,
        sigmas: Tensor | None = None,
    ) -> tuple[Latent]:
        from ...uniworld_core.sampling.sampler import paint

        condition, latents = to_condition(conditioning), dit.facts.latent_format
        samples = samples_of(latent, latents, self.DISPLAY_NAME)
        size, batch = latents.size(samples.shape), len(samples)
        warn_of_size(dit.facts.native_side, size.height, size.width)
        tokens = batch * (latents.token_count(samples.shape) + condition.tokens.shape[1])
        painted = paint(
            dit.on_device(working_memory=tokens * dit.facts.token_bytes),
            condition,
            size,
            [(seed + i) % 2**64 for i in range(batch)],
            steps,
            guidance,
            denoise=denoise,
            sigmas=sigmas,
            latent=samples,
            keep_B1hw=keep_mask(latent.get("noise_mask"), batch, *samples.shape[-2:]),
            callback=step_report(steps if sigmas is None else len(sigmas) - 1, latents.rgb),
        )
        return (to_latent(painted.cpu(), latents, latent),)


# A latent of more than so many times the area that the model was made for gives repeated patterns, or takes an hour.
_TOO_LARGE = 8


def warn_of_size(native_side: int, height: int, width: int) -> None:
    """Warn of a picture far larger than what the model was made for."""
    if height * width > _TOO_LARGE * native_side**2:
        host.current().warn(
            f"The latent is of a picture of {width}x{height} pixels, and this model was made for about "
            f"{native_side}x{native_side}: wire dit of Load UniWorld into UniWorld Empty Latent, or set its area_side to "
            f"{native_side}."
        )


def step_report(total: int, rgb: RGB) -> Callable[[Step], None]:
    """A callback that shows each step with a preview, and stops the run when the user asks to."""
    from ...uniworld_core.sampling.latents import preview

    here = host.current()
    progress = here.progress(total)

    def report(step: Step) -> None:
        here.check_interrupt()
        progress.update(step.index + 1, preview(step.denoised[0], rgb))

    return report


def keep_mask(noise_mask: Tensor | None, batch: int, h: int, w: int) -> Tensor | None:
    """(B, 1, h, w), 1 where a LATENT's noise mask (1 = paint) keeps the latent; None without a mask.

    Fewer masks than pictures are repeated, as ComfyUI's own samplers do.
    """
    if noise_mask is None:
        return None
    import torch.nn.functional as F

    mask = noise_mask.reshape(-1, 1, *noise_mask.shape[-2:]).float()
    cells = 1.0 - F.interpolate(mask, size=(h, w), mode="bilinear", antialias=True)
    return cells.repeat(-(-batch // len(cells)), 1, 1, 1)[:batch]


NODES = by_id(LatentByAspect, Scheduler, Sampler)
