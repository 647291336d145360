"""The sections of `gpu.py` in the order in which they run: the fast and most important ones first."""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_models import Models, text_and_latent

if TYPE_CHECKING:
    from gpu import Bench

GIB = 2**30
# Linear layers take 12 d^2 multiply-adds per token and block: qkv 3, out 1, mlp 8 in double blocks; 7 + 5 in single ones.
_BLOCKS, _WIDTH = 57, 3072
_BARS = {"bfloat16": 2e-2, "int8": 2e-2, "fp8": 5e-2}
_PARITY_FLOAT32 = 1e-4
SIDE, TEXT = 1024, 1376


def tflop(side: int, text: int) -> float:
    """Return the floating-point operations of one step of UniWorld-V1's DiT, in 10^12."""
    tokens = (side // 16) ** 2 + text
    return (2 * _BLOCKS * 12 * _WIDTH**2 * tokens + 4 * tokens**2 * _WIDTH * _BLOCKS) / 1e12


def sizes(bench: Bench, side: int = SIDE, text: int = TEXT) -> tuple[int, int]:
    return (32, 9) if bench.tiny else (side, text)


@torch.inference_mode()
def velocity(dit: Any, inputs: tuple[torch.Tensor, Any, torch.Tensor]) -> torch.Tensor:
    x, condition, positions = inputs
    return dit.packed_velocity(x, 0.7, condition, 3.5, positions)


def env(bench: Bench) -> None:
    """Report versions, the device, and its transfer speed."""
    import diffusers
    import transformers

    bench.say("python", platform.python_version())
    for module in (torch, diffusers, transformers):
        bench.say(module.__name__, module.__version__)
    if not bench.cuda:
        bench.say("device", f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
        return
    bench.say("device", torch.cuda.get_device_name())
    bench.say("capability", ".".join(map(str, torch.cuda.get_device_capability())))
    bench.say("CUDA", str(torch.version.cuda))
    free, total = torch.cuda.mem_get_info()
    bench.say("memory free", free / GIB, "GiB", f"of {total / GIB:.1f}")
    bench.say("fp8 products", "yes" if torch.cuda.get_device_capability() >= (8, 9) else "no")
    for name, pinned in (("pageable", False), ("pinned", True)):
        source = torch.empty(GIB, dtype=torch.uint8, pin_memory=pinned)
        ms = bench.milliseconds(lambda source=source: source.to(bench.device, non_blocking=True), 3, 1)
        bench.say(f"host to device, {name}", 1000 / ms, "GiB/s")


def parity(bench: Bench) -> None:
    """Compare each storage with float32, and the device with the CPU, on one double and one single block of full width."""
    models = Models(bench.device, bench.tiny)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    inputs = text_and_latent(models, *sizes(bench, 256, 64))
    exact = velocity(models.dit("float32", blocks=1), inputs)

    def error(found: torch.Tensor) -> float:
        return float((found.to(exact.device) - exact).norm() / exact.norm())

    def line(name: str, value: float, bar: float | None) -> None:
        over = bar is not None and not value <= bar
        bench.failed += [name] if over else []
        bench.compared += bar is not None
        bench.say(name, value, "relative", "" if bar is None else f"{'OVER' if over else 'within'} {bar:g}")

    if bench.cuda:
        on_cpu = Models(torch.device("cpu"), bench.tiny)
        found = velocity(on_cpu.dit("float32", blocks=1), text_and_latent(on_cpu, 256, 64))
        line("float32 on the CPU against the device", error(found), _PARITY_FLOAT32)
    for storage in ("bfloat16", "int8", "fp8", "nf4"):
        found = bench.attempt(storage, lambda storage=storage: velocity(models.dit(storage, blocks=1), inputs))
        if found is not None:
            line(f"{storage} against float32", error(found), _BARS.get(storage))
    torch.backends.cuda.matmul.allow_tf32 = before


def step(bench: Bench) -> None:
    """Time a step in every storage, with every attention backend, and with a mask."""
    models = Models(bench.device, bench.tiny)
    shapes = [(SIDE, TEXT)] if bench.tiny else [(SIDE, TEXT), (512, TEXT), (SIDE, 512)]
    for storage in ("bfloat16", "int8", "fp8", "nf4"):
        dit = bench.attempt(f"{storage}, weights", lambda storage=storage: models.dit(storage))
        if dit is None:
            continue
        for side, text in shapes if storage == "bfloat16" else shapes[:1]:
            inputs = text_and_latent(models, *sizes(bench, side, text))
            _timed(bench, f"{storage}, {side}x{side}, {text} text tokens", dit, inputs, tflop(side, text))
        if storage == "bfloat16":
            _backends(bench, models, dit)
        del dit
        bench.free()


def _timed(bench: Bench, name: str, dit: Any, inputs: Any, operations: float | None = None) -> float | None:
    ms: float | None = bench.attempt(name, lambda: bench.milliseconds(lambda: velocity(dit, inputs)))
    if ms is not None:
        share = "" if operations is None or bench.tiny else f"{operations / ms * 1000:.0f} TFLOP/s"
        bench.say(name, ms, "ms", share)
        if bench.cuda:
            bench.say(f"{name}, peak", bench.peak()[0], "GiB")
    return ms


def _backends(bench: Bench, models: Models, dit: Any) -> None:
    from dataclasses import replace

    inputs = text_and_latent(models, *sizes(bench))
    for backend in ("_native_cudnn", "_native_flash", "_flash_3_hub", "sage"):

        def choose(backend: str = backend) -> bool:
            dit.transformer.set_attention_backend(backend)
            return True

        if bench.attempt(f"backend {backend}", choose):
            _timed(bench, f"backend {backend}", dit, inputs)
    dit.transformer.set_attention_backend("native")
    x, condition, positions = text_and_latent(models, *sizes(bench), batch=2)
    mask = torch.ones(condition.tokens.shape[:2], dtype=torch.bool, device=bench.device)
    mask[0, : mask.shape[1] // 2] = False
    _timed(bench, "two prompts of different length, masked", dit, (x, replace(condition, mask=mask), positions))


def compile(bench: Bench) -> None:
    """Time regional compilation: the first call, a step, and the first call with another size."""
    models = Models(bench.device, bench.tiny)
    for storage in ("bfloat16", "int8", "fp8"):
        dit = bench.attempt(f"{storage}, weights", lambda storage=storage: models.dit(storage))
        if dit is None:
            continue
        dit.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
        for name, (side, text) in {"first": (SIDE, TEXT), "another size": (896, 1400)}.items():
            inputs = text_and_latent(
                models, *(sizes(bench) if name == "first" else (48, 12) if bench.tiny else (side, text))
            )
            start = time.perf_counter()
            if bench.attempt(f"{storage}, {name} call", lambda dit=dit, inputs=inputs: velocity(dit, inputs)) is None:
                break
            if bench.cuda:
                torch.cuda.synchronize()
            bench.say(f"{storage}, {name} call", time.perf_counter() - start, "s")
            _timed(bench, f"{storage} compiled, {side}x{side}, {text} text tokens", dit, inputs, tflop(side, text))
        del dit
        torch._dynamo.reset()
        bench.free()


def fp8mm(bench: Bench) -> None:
    """Time float8 matrix products of torchao, which UniWorld does not use, to see what they would save."""
    models = Models(bench.device, bench.tiny)

    def quantized() -> Any:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

        dit = models.dit("bfloat16")
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
        quantize_(dit.transformer.transformer_blocks, config)
        quantize_(dit.transformer.single_transformer_blocks, config)
        dit.transformer.compile_repeated_blocks(fullgraph=True)
        return dit

    dit = bench.attempt("torchao float8 products, compiled", quantized)
    if dit is not None:
        _timed(
            bench, "torchao float8 products, compiled", dit, text_and_latent(models, *sizes(bench)), tflop(SIDE, TEXT)
        )


def cache(bench: Bench) -> None:
    """Time diffusers' caches over a run of 28 steps. With random weights, the difference does not measure quality."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import TaylorSeerCacheConfig
    from uniworld.uniworld_core.sampling import flow

    models = Models(bench.device, bench.tiny)
    dit = models.dit("bfloat16")
    x, condition, positions = text_and_latent(models, *sizes(bench))
    sigmas = flow.schedule(4 if bench.tiny else 28, x.shape[1], dit.shift)

    def run(context: Any) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        with torch.inference_mode(), context:
            z = flow.euler(lambda z, sigma: dit.packed_velocity(z, sigma, condition, 3.5, positions), x.clone(), sigmas)
        if bench.cuda:
            torch.cuda.synchronize()
        return z, time.perf_counter() - start

    run(nullcontext())
    plain, seconds = run(nullcontext())
    bench.say("without", seconds, "s")
    configs = {f"FirstBlockCache {t}": (lambda t=t: FirstBlockCacheConfig(threshold=t)) for t in (0.05, 0.1, 0.2)}
    configs["TaylorSeer 5"] = lambda: TaylorSeerCacheConfig(cache_interval=5)
    for name, make in configs.items():

        def cached(make: Callable[[], Any] = make) -> tuple[torch.Tensor, float]:
            dit.transformer.enable_cache(make())
            try:
                return run(dit.transformer.cache_context("run"))
            finally:
                dit.transformer.disable_cache()

        found = bench.attempt(name, cached)
        if found is not None:
            difference = float((found[0] - plain).norm() / plain.norm())
            bench.say(name, found[1], "s", f"time only; latent differs by {difference:.3f}")


def caps(bench: Bench) -> None:
    """Find the largest setting with which each stage runs on cards with less memory."""
    for cap in bench.caps:
        with _capped(bench, cap):
            models, possible = Models(bench.device, bench.tiny), True
            for stage, run in STAGES.items():
                possible &= any(
                    _stage(bench, models, f"{cap} GiB: {stage}, {how}", run, how) for how in _SETTINGS[stage]
                )
            bench.say(f"{cap} GiB: an edit of {SIDE}x{SIDE}", "possible" if possible else "NOT POSSIBLE")


@contextmanager
def _capped(bench: Bench, gib: int) -> Iterator[None]:
    if bench.cuda:
        bench.free()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
    try:
        yield
    finally:
        if bench.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)


def _stage(bench: Bench, models: Models, name: str, run: Callable[[Bench, Models, str], float], how: str) -> bool:
    bench.free()
    bench.peak()
    ms = bench.attempt(name, lambda: run(bench, models, how))
    if ms is not None:
        allocated, reserved = bench.peak()
        bench.say(name, ms, "ms", f"peak {allocated:.2f} GiB, reserved {reserved:.2f}" if bench.cuda else "")
    return ms is not None


def _place(bench: Bench, make: Callable[..., Any], how: str) -> Any:
    """Return a part in a setting such as "int8" or "int8 streamed"."""
    from uniworld.uniworld_core.loading.offload import stream_blocks

    storage, _, streamed = how.partition(" ")
    if not streamed:
        return make(storage)
    part = make(storage, torch.device("cpu"))
    stream_blocks(part, bench.device)
    return part


def _dit_stage(bench: Bench, models: Models, how: str) -> float:
    dit, inputs = _place(bench, models.dit, how), text_and_latent(models, *sizes(bench))
    return bench.milliseconds(lambda: velocity(dit, inputs), 3, 2)


@torch.inference_mode()
def _vlm_stage(bench: Bench, models: Models, how: str) -> float:
    from uniworld.uniworld_core.backbones.rope import rope_positions

    reader, config = _place(bench, models.vlm, how), models.config.vlm
    image, side = config.tokens["image_token_id"], 4 if bench.tiny else 32  # 448 / 14 patches a side
    grid = torch.tensor([[1, side, side]])
    ids = torch.tensor([[7] * 30 + [image] * (side * side // 4) + [7] * 30])
    mask = torch.ones_like(ids, dtype=torch.bool)
    positions = rope_positions(ids, mask, grid, image, 2).to(bench.device)
    vision = {"patch_size": 14, "temporal_patch_size": 2} | dict(config.vision)
    values = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    patches = torch.zeros(side * side, values, device=bench.device, dtype=torch.bfloat16)
    arguments = {
        "input_ids": ids.to(bench.device),
        "attention_mask": mask.long().to(bench.device),
        "position_ids": positions,
        "pixel_values": patches,
        "image_grid_thw": grid.to(bench.device),
    }
    return bench.milliseconds(lambda: reader.qwen.model(**arguments, use_cache=False), 3, 1)


@torch.inference_mode()
def _t5_stage(bench: Bench, models: Models, how: str) -> float:
    t5 = _place(bench, models.t5, how)
    ids = torch.ones(1, 256, dtype=torch.long, device=bench.device)
    return bench.milliseconds(lambda: t5.encoder(input_ids=ids).last_hidden_state, 3, 1)


@torch.inference_mode()
def _siglip_stage(bench: Bench, models: Models, how: str) -> float:
    siglip = models.siglip()
    side = siglip.config.image_size
    pixels = torch.zeros(1, 3, side, side, device=bench.device, dtype=torch.bfloat16)
    return bench.milliseconds(lambda: siglip(pixel_values=pixels).last_hidden_state, 3, 1)


@torch.inference_mode()
def _vae_stage(bench: Bench, models: Models, how: str) -> float:
    vae = models.vae()
    vae.autoencoder.use_tiling, vae.autoencoder.tile_sample_min_size = how == "in tiles", 512
    vae.autoencoder.tile_latent_min_size = 64
    cells = sizes(bench)[0] // 8
    z = torch.zeros(1, 16, cells, cells, device=bench.device, dtype=torch.bfloat16)
    return bench.milliseconds(lambda: vae.autoencoder.decode(z, return_dict=False)[0], 3, 1)


STAGES: dict[str, Callable[[Any, Models, str], float]] = {
    "SigLIP": _siglip_stage,
    "Qwen2.5-VL": _vlm_stage,
    "T5": _t5_stage,
    "DiT step": _dit_stage,
    "VAE": _vae_stage,
}
_STORAGES = ("bfloat16", "int8", "nf4", "int8 streamed")
_SETTINGS = {
    "SigLIP": ("resident",),
    "Qwen2.5-VL": _STORAGES,
    "T5": _STORAGES,
    "DiT step": _STORAGES,
    "VAE": ("whole", "in tiles"),
}


def offload(bench: Bench) -> None:
    """Time a step with blocks streamed from system RAM, and compare the copy speed with the computation."""
    from uniworld.uniworld_core.loading.module_size import module_bytes

    models = Models(bench.device, bench.tiny)
    inputs = text_and_latent(models, *sizes(bench))
    for storage in ("int8", "bfloat16"):
        resident = bench.attempt(f"{storage}, weights", lambda storage=storage: models.dit(storage))
        if resident is None:
            continue
        compute, held = bench.milliseconds(lambda dit=resident: velocity(dit, inputs), 3, 1), module_bytes(resident)
        del resident
        bench.free()
        dit = bench.attempt(
            f"{storage}, streamed", lambda storage=storage: _place(bench, models.dit, f"{storage} streamed")
        )
        ms = None if dit is None else _timed(bench, f"{storage}, streamed", dit, inputs)
        if ms is not None:
            bench.say(f"{storage}, resident", compute, "ms")
            bench.say(f"{storage}, copied", held / ms * 1000 / 1e9, "GB/s")
        del dit
        bench.free()


def load(bench: Bench) -> None:
    """Time `Shards` reading a shard to the device that is not in the page cache."""
    from safetensors.torch import save_file
    from uniworld.uniworld_core.loading.weights import Shards

    count = 2**10 if bench.tiny else 2**30
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (torch.bfloat16, torch.float32):
            file = Path(folder) / "model.safetensors"
            rows = torch.zeros(8, count // 8 // (dtype.itemsize // 2), dtype=dtype)
            save_file({str(i): row.clone() for i, row in enumerate(rows)}, file)
            size = file.stat().st_size
            if hasattr(os, "posix_fadvise"):
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            shards, start = Shards(Path(folder)), time.perf_counter()
            for _, tensor in shards.read(shards.shapes):
                tensor.to(bench.device, torch.bfloat16, copy=True)
            if bench.cuda:
                torch.cuda.synchronize()
            speed = size / (time.perf_counter() - start)
            bench.say(f"{str(dtype).removeprefix('torch.')} shard", speed / 1e9, "GB/s")
            whole = {torch.bfloat16: 23.8e9, torch.float32: 47.6e9}[dtype]
            bench.say(f"{str(dtype).removeprefix('torch.')} DiT, extrapolated", whole / speed, "s")
            file.unlink()


def train(bench: Bench) -> None:
    """Time a training step: stage 1 (gradients pass through the frozen DiT) and stage 2 (its image branch is trained)."""
    from uniworld.training.config.file import load_config
    from uniworld.training.objective.trainable import part_of

    models = Models(bench.device, bench.tiny)
    side, text = sizes(bench, 512, 512)
    for stage in ("stage1", "stage2"):
        parts = load_config(stage, []).stage.parts

        def seconds(stage: str = stage, parts: Any = parts) -> float:
            dit = models.dit("bfloat16")
            trained = [
                parameter.requires_grad_(True)
                for name, parameter in dit.named_parameters()
                if stage == "stage2" and part_of(f"dit.{name}", parts) is not None
            ]
            x, condition, positions = text_and_latent(models, side, text)
            condition.tokens.requires_grad_(True)
            dit.transformer.train()
            dit.transformer.enable_gradient_checkpointing()
            optimizer = torch.optim.AdamW(trained, lr=1e-5) if trained else None

            def one() -> None:
                loss = dit.packed_velocity(x, 0.7, condition, 1.0, positions).float().pow(2).mean()
                loss.backward()
                if optimizer is not None:
                    optimizer.step()
                    optimizer.zero_grad()

            return bench.milliseconds(one, 3, 1) / 1000

        bench.peak()
        found = bench.attempt(stage, seconds)
        if found is not None:
            rate = 4 * tflop(side, text) / found  # forward, recomputed forward, and backward, which counts twice
            peak = f"peak {bench.peak()[0]:.1f} GiB, {rate:.0f} TFLOP/s" if bench.cuda else ""
            bench.say(f"{stage}, {side}x{side}", found, "s", peak)
        bench.free()


def summary(bench: Bench) -> None:
    """Compare the time per step with estimates for one H200 from published runs."""
    expected = {
        "bfloat16, 1024x1024, 1376 text tokens": "230 to 260",
        "bfloat16 compiled, 1024x1024, 1376 text tokens": "180 to 200",
        "torchao float8 products, compiled": "110 to 140",
    }
    found = {line.name: line.value for line in bench.lines if line.unit == "ms" and isinstance(line.value, float)}
    for name, wanted in expected.items():
        if name in found:
            milliseconds = float(found[name])
            bench.say(name, milliseconds, "ms", f"expected {wanted}; 28 steps {milliseconds * 28 / 1000:.1f} s")
    if not math.isclose(tflop(SIDE, TEXT), 91.7, abs_tol=0.1):
        bench.failed.append("the operation count of a step")
    bench.say("one step", tflop(SIDE, TEXT), "TFLOP", "93 ms at the 989 TFLOP/s of an H200")


SECTIONS: dict[str, Callable[[Any], None]] = {
    "env": env,
    "parity": parity,
    "step": step,
    "compile": compile,
    "fp8mm": fp8mm,
    "cache": cache,
    "caps": caps,
    "offload": offload,
    "load": load,
    "train": train,
    "summary": summary,
}
