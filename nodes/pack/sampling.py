"""UniWorld Empty Latent, Scheduler and Sampler: from a condition to a denoised latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...uniworld_core.errors import UniWorldError
from .. import host
from ..declare import Input, Inputs, Node, Output, by_id
from .conditioning import guidance_input, to_condition
from .latents import empty_latent, samples_of, to_latent
from .sigmas import check_origin, to_sigmas

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.prompts.reference import References
    from ...uniworld_core.sampling.flow import Shift, Step
    from ...uniworld_core.sampling.latents import RGB
    from .wires import Conditioning, DiTWire, Latent

_DIT = Input.wire("dit", "UNIWORLD_DIT", "The DiT from Load UniWorld.")
# The choice of `ratios` that stands for the sizes of the model.
NATIVE = "native"
DENOISE = Input.number(
    "denoise",
    "1 starts from pure noise. Lower values keep more of the input latent.",
    default=1.0,
    min=0.01,
    max=1.0,
    step=0.01,
)


def steps_input() -> Input:
    from ...uniworld_core.families.uniworld_v1.painting import STEPS

    return Input.integer("steps", f"Number of sampling steps (published: {STEPS}).", default=STEPS, min=1, max=1000)


def speed_inputs() -> Inputs:
    """Return the choices of a sampler that save time. They are optional, so that prompts from before them still run."""
    from ...uniworld_core.sampling.cache import CACHES
    from ...uniworld_core.sampling.solvers import SOLVERS

    return (
        Input.choice(
            "cache",
            CACHES,
            "Skips blocks of the DiT in steps in which they hardly change the result. With 28 steps of nano, light takes 0.79 "
            "of the time, at a PSNR of 64 dB against off, and strong 0.45, at 51 dB.",
            default=CACHES[0],
            optional=True,
            advanced=True,
        ),
        Input.choice(
            "solver",
            SOLVERS,
            "dpm2 is of second order: it needs fewer steps than euler at the same time per step. Against 250 steps of nano, "
            "28 steps reach 66 dB instead of 62, and 12 steps 58 dB instead of 54.",
            default=SOLVERS[0],
            optional=True,
            advanced=True,
        ),
    )


class LatentByAspect(Node):
    """Create an empty latent of a size that suits the model."""

    ID = "UniWorldEmptyLatent"
    DISPLAY_NAME = "UniWorld Empty Latent"
    SEARCH_ALIASES = ["empty latent", "aspect ratio", "size", "resolution", "latent by aspect"]
    CATEGORY = "UniWorld/latent"
    DESCRIPTION = (
        "Creates an empty latent with the closest of a set of aspect ratios at the given area, as the published program "
        "does. The aspect ratio is taken from the references or the image if connected, or else from width and height."
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
            side("width", "Width of the aspect ratio. Used if neither image nor references are connected."),
            side("height", "Height of the aspect ratio. Used if neither image nor references are connected."),
            Input.integer(
                "area_side",
                "The image has about the area of a square with this side, in pixels. 0 selects the native size of the "
                f"model connected to dit, or {DEFAULT_SIDE}, as for UniWorld-V1, if none is connected.",
                default=0,
                min=0,
                max=4096,
                step=STRIDE,
            ),
            Input.choice(
                "ratios",
                (*RATIO_SETS, NATIVE),
                f"The set of aspect ratios to choose from (published: {len(RATIO_SETS[DEFAULT_RATIOS])}). {NATIVE}: the sizes "
                "that the model connected to dit was trained for.",
                default=DEFAULT_RATIOS,
            ),
            Input.integer("batch_size", "Number of images to generate at once.", default=1, min=1, max=64),
            Input.wire("image", "IMAGE", "Use the aspect ratio of this image.", optional=True),
            Input.wire(
                "references",
                "UNIWORLD_REFERENCE",
                "Use the mean aspect ratio of the first two references.",
                optional=True,
            ),
            Input.wire(
                "dit",
                "UNIWORLD_DIT",
                "The DiT from Load UniWorld. Its native size is used if area_side is 0.",
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
        from ...uniworld_core.images.sizes import DEFAULT_RATIOS, DEFAULT_SIDE, mean_size, size_by_aspect

        if references:
            # Two references at most, as in the published program (serve/cli.py).
            height, width = mean_size([(ref.picture.height, ref.picture.width) for ref in references[:2]])
        elif image is not None:
            height, width = image.shape[1], image.shape[2]
        side = area_side or (DEFAULT_SIDE if dit is None else dit.facts.native_side)
        if ratios != NATIVE or dit is None:
            size = size_by_aspect(height, width, side * side, DEFAULT_RATIOS if ratios == NATIVE else ratios)
        else:
            size = dit.facts.size_for(height, width, side)
        latent_format = FLUX_LATENTS if dit is None else dit.facts.latent_format
        zeros = torch.zeros(latent_format.shape(batch_size, size))
        return empty_latent(zeros, latent_format), size.width, size.height


class Scheduler(Node):
    """Compute noise levels with FLUX's shift for the size of the image."""

    ID = "UniWorldFlowScheduler"
    DISPLAY_NAME = "UniWorld Scheduler"
    SEARCH_ALIASES = ["sigmas", "noise schedule", "flow shift", "FLUX scheduler"]
    CATEGORY = "UniWorld/sampling"
    DESCRIPTION = (
        "Computes the published noise levels: evenly spaced, then shifted according to the number of packed tokens of the "
        "latent. For UniWorld Sampler or ComfyUI's custom samplers."
    )
    OUTPUTS = (Output("sigmas", "SIGMAS", "The noise levels: steps + 1 values, of which the last is 0."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return _DIT, Input.wire("latent", "LATENT", "A latent of the output size."), steps_input(), DENOISE

    def execute(self, dit: DiTWire, latent: Latent, steps: int, denoise: float) -> tuple[Tensor]:
        from ...uniworld_core.sampling.flow import schedule

        samples = samples_of(latent, dit.facts.latent_format, self.DISPLAY_NAME)
        shift = shift_of(dit, self.DISPLAY_NAME)
        tokens = dit.facts.latent_format.token_count(samples.shape)
        return (to_sigmas(schedule(steps, tokens, shift, denoise), shift, dit.facts.family),)


class Sampler(Node):
    """Denoise a latent with the DiT."""

    ID = "UniWorldSampler"
    DISPLAY_NAME = "UniWorld Sampler"
    SEARCH_ALIASES = ["KSampler", "denoise", "DiT", "generate", "edit image", "FLUX"]
    CATEGORY = "UniWorld/sampling"
    DESCRIPTION = (
        "Denoises a latent with the checkpoint's DiT and the conditioning. Item i of a batch uses seed + i, so each "
        "image can be reproduced on its own. With a noise mask on the latent, everything outside the mask is kept."
    )
    OUTPUTS = (Output("latent", "LATENT", "The denoised latent, for UniWorld VAE Decode."),)

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE

        return (
            _DIT,
            Input.wire("conditioning", "CONDITIONING", "From UniWorld Condition."),
            Input.wire("latent", "LATENT", "Determines the size. With denoise below 1 it is also the starting point."),
            Input.seed("seed", "The same seed gives the same image on the same machine."),
            steps_input(),
            guidance_input(
                f"FLUX's embedded guidance (published: {GUIDANCE}). Overrides the guidance of the conditioning. For "
                "Qwen-Image-Edit the scale of true guidance (published: 4.0): above 1, each step takes twice as long."
            ),
            DENOISE,
            Input.wire("sigmas", "SIGMAS", "Noise levels to use instead of steps and denoise.", optional=True),
            *speed_inputs(),
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
        cache: str = "off",
        solver: str = "euler",
    ) -> tuple[Latent]:
        from ...uniworld_core.sampling.sampler import paint, sequence_length

        shift = shift_of(dit, self.DISPLAY_NAME)
        latents = dit.facts.latent_format
        condition = to_condition(conditioning, latents)
        condition.check_family(dit.facts.family)
        if sigmas is not None:
            check_origin(sigmas, shift, dit.facts.family)
        samples = samples_of(latent, latents, self.DISPLAY_NAME)
        size, batch = latents.size(samples.shape), len(samples)
        warn_of_size(dit.facts.native_side, size.height, size.width)
        # The DiT's blocks attend over all tokens together, so these determine the memory for activations.
        tokens = batch * sequence_length(condition, latents, samples.shape)
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
            cache=cache,
            solver=solver,
        )
        # Results wait in system RAM, as in ComfyUI: the host caches them between runs.
        return (to_latent(painted.cpu(), latents, latent),)


def shift_of(dit: DiTWire, node: str) -> Shift:
    """Return the shift of a model's noise levels. Raises UniWorldError for a model without noise levels."""
    if dit.facts.shift is None:
        raise UniWorldError(
            f"{node} takes models with noise levels, and {dit.facts.family} has none: use UniWorld UniPic Sampler."
        )
    return dit.facts.shift


# An image with more than this many times the model's native area shows repeated patterns, or takes an hour.
_MAX_AREA_RATIO = 8


def warn_of_size(native_side: int, height: int, width: int) -> None:
    """Warn about an image that is much larger than the model's native size."""
    if height * width > _MAX_AREA_RATIO * native_side**2:
        host.current().warn(
            f"The latent is for an image of {width}x{height} pixels, but the native size of this model is about "
            f"{native_side}x{native_side}: connect dit of Load UniWorld to UniWorld Empty Latent, or set its area_side to "
            f"{native_side}."
        )


def step_report(total: int, rgb: RGB) -> Callable[[Step], None]:
    """Return a sampler callback that reports each step with a preview and raises if the run is cancelled."""
    from ...uniworld_core.sampling.latents import preview

    here = host.current()
    progress = here.progress(total)

    def report(step: Step) -> None:
        here.check_interrupt()
        progress.update(step.index + 1, preview(step.denoised[0], rgb))

    return report


def keep_mask(noise_mask: Tensor | None, batch: int, h: int, w: int) -> Tensor | None:
    """Return the inverse of a LATENT's noise mask at latent size: (B, 1, h, w), 1 where the latent is kept.

    Returns None without a mask. If there are fewer masks than images, they are repeated, as in ComfyUI's own samplers.
    """
    if noise_mask is None:
        return None
    import torch.nn.functional as F

    mask = noise_mask.reshape(-1, 1, *noise_mask.shape[-2:]).float()
    cells = 1.0 - F.interpolate(mask, size=(h, w), mode="bilinear", antialias=True)
    return cells.repeat(-(-batch // len(cells)), 1, 1, 1)[:batch]


NODES = by_id(LatentByAspect, Scheduler, Sampler)
