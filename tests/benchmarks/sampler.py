"""Overhead of the sampler (packing, Euler steps, checks) over its bare transformer calls."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def build_dit(width: int, blocks: int) -> Any:
    """Build a DiT with random weights, of this width and number of double and single blocks."""
    import torch
    from diffusers import FluxTransformer2DModel
    from uniworld.uniworld_core import DiT

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=blocks,
        num_single_layers=blocks,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=width,
        pooled_projection_dim=64,
        guidance_embeds=True,
        axes_dims_rope=(16, 24, 24),
    )
    return DiT(transformer.eval().requires_grad_(False))


def sampler_and_bare(dit: Any, side: int, steps: int, text: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the sampler, and a function that makes only its transformer calls."""
    import torch
    from uniworld.uniworld_core import Condition
    from uniworld.uniworld_core.images.sizes import Size
    from uniworld.uniworld_core.sampling import flow
    from uniworld.uniworld_core.sampling.packing import grid_positions, pack
    from uniworld.uniworld_core.sampling.sampler import make_noise, sample

    condition = Condition(torch.randn(1, text, dit.transformer.config.joint_attention_dim), torch.randn(1, 64))
    latents = dit.latent_format
    shape = latents.shape(1, Size(side, side))
    noise, sigmas = make_noise([0], shape[1:]), flow.schedule(steps, latents.token_count(shape), dit.shift)
    rows, columns = shape[-2] // latents.pack, shape[-1] // latents.pack
    inputs = {
        "hidden_states": pack(noise, latents.pack),
        "encoder_hidden_states": condition.tokens,
        "pooled_projections": condition.pooled,
        "guidance": torch.tensor([3.5]),
        "img_ids": grid_positions(rows, columns, noise.device),
        "txt_ids": torch.zeros(text, 3),
        "return_dict": False,
    }
    levels = [sigma.reshape(1) for sigma in sigmas[:-1]]

    def sampler() -> None:
        sample(dit, condition, noise, sigmas, 3.5, callback=lambda step: None)

    @torch.inference_mode()
    def bare() -> None:
        for level in levels:
            dit.transformer(timestep=level, **inputs)

    return sampler, bare


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="width of the DiT, a multiple of 64 (512)")
    parser.add_argument("--blocks", type=int, default=1, help="double blocks, and as many single ones (1)")
    parser.add_argument("--side", type=int, default=320, help="side of the picture in pixels (320)")
    parser.add_argument("--text", type=int, default=128, help="text tokens (128)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a run (2)")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of runs (40)")
    options = parser.parse_args(arguments)

    sampler, bare = sampler_and_bare(
        build_dit(options.width, options.blocks), options.side, options.steps, options.text
    )
    seconds(sampler), seconds(bare)  # warm up both
    ours, theirs = [], []
    for pair in range(options.pairs):  # alternating, so that other load on the machine affects both
        for run, times in ((sampler, ours), (bare, theirs))[:: 1 if pair % 2 else -1]:
            times.append(seconds(run))
    ratios = sorted(our / their for our, their in zip(ours, theirs))
    quarter = len(ratios) // 4
    fastest = min(ours) / min(theirs)
    print(f"bare transformer calls   {statistics.median(theirs) / options.steps * 1000:8.1f} ms a step")
    print(f"sampler                  {statistics.median(ours) / options.steps * 1000:8.1f} ms a step")
    print(
        f"sampler over bare        {statistics.median(ratios):8.3f} (median of {options.pairs} pairs; "
        f"half of them {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}; fastest runs {fastest:.3f}; aim: under 1.05)"
    )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from checkout import import_checkout

    import_checkout()
    sys.exit(main())
