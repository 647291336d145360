"""The workflows of other model families, whose models do not ship. They run wherever UniWorld's nodes do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FamilyEdit:
    """An edit with a model of another family.

    Attributes:
        prompt: the instruction.
        pictures: the references in order, files in workflows/input.
        guidance: the guidance that its publisher recommends.
        about: the note about the model: what to download, memory and license.
    """

    prompt: str
    pictures: tuple[str, ...]
    guidance: float
    about: str


_QWEN = (
    "[Qwen-Image-Edit-2509](https://huggingface.co/Qwen/Qwen-Image-Edit-2509) has the license Apache-2.0. Run `hf download` as "
    "in the README (*Where the weights go*): 58 GB in `models/diffusers`.\n\nWith *storage* int8 its DiT takes 20 GB and its "
    "Qwen2.5-VL 9 GB. *guidance* 1 is twice as fast, and less exact."
)
EDITS = {
    "kontext_edit": FamilyEdit(
        "Change the cat's eyes to bright blue.",
        ("cat.jpg",),
        2.5,
        "[FLUX.1-Kontext-dev](https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev) is for non-commercial use. Accept "
        "its license there, then run `hf download` as in the README (*Where the weights go*): 34 GB in "
        "`models/diffusers`.\n\nWith *storage* int8 its DiT takes 12 GB. `flux` and `siglip` are ignored.",
    ),
    "qwen_edit": FamilyEdit("Change the cat's eyes to bright blue.", ("cat.jpg",), 4.0, _QWEN),
    "qwen_multi_reference": FamilyEdit(
        "Put the cat of Picture 1 beside the cup of Picture 2.", ("cat.jpg", "coffee.jpg"), 4.0, _QWEN
    ),
}


def graphs() -> list[Any]:
    """Build the workflows of other families."""
    from workflows import unipic

    edits = [edit(name) if len(settings.pictures) == 1 else combine(name) for name, settings in EDITS.items()]
    return [*edits, *unipic.graphs()]


def edit(name: str) -> Any:
    """An edit of an image, laid out as the first of the shared workflows."""
    from workflows import build

    settings = EDITS[name]
    graph = build.new(
        name,
        (build.LOAD, build.READ, build.ASK, build.PAINT, build.DECODE, (30, 220)),
        (("Model and image", 0, 0), ("Instruction", 1, 2), ("Sampling", 3, 4), ("Result", 5, 5)),
    )
    load = loader(graph)
    source = build.picture(graph, settings.pictures[0], top=graph.below(load))
    reference = graph.add("UniWorldReference", 1, build.REFERENCE, image=source[0], mask=source[1])
    condition = build.conditioned(graph, 2, load, references=reference[0], prompt=settings.prompt)
    latent = build.empty_latent(graph, 2, load, references=reference[0], ratios="native")
    image = painted(graph, 3, load, condition, latent)
    graph.add("SaveImage", 5, 50, images=image[0], filename_prefix=f"uniworld/{name}")
    graph.note("The model", settings.about, 5, 380, (None, 270))
    text = (
        "Choose an image, write what to change in **UniWorld Condition**, and press **Run**. For another image, chain a second "
        "**UniWorld Reference**. *ratios* `native` takes the sizes that the model was trained for."
    )
    build.usage(graph, 3, text, (300, 110))
    return graph


def combine(name: str) -> Any:
    """An edit with two references, laid out as the shared workflow that combines images."""
    from workflows import build

    settings = EDITS[name]
    graph = build.new(
        name,
        (build.LOAD, build.READ, (30, 144), build.ASK, build.PAINT, build.AFTER),
        (("Model and images", 0, 1), ("Prompt", 2, 3), ("Sampling", 4, 4), ("Result", 5, 5)),
    )
    load = loader(graph)
    first, second = settings.pictures
    one = build.picture(graph, first, "First picture", top=graph.below(load))
    two = build.picture(graph, second, "Second picture", 1, 600)
    inputs = {"image": one[0], "mask": one[1]}
    before = graph.add("UniWorldReference", 1, 520, "Reference 1", collapsed=True, **inputs)
    inputs = {"image": two[0], "mask": two[1], "references": before[0]}
    both = graph.add("UniWorldReference", 2, 490, "Reference 2", collapsed=True, **inputs)
    condition = build.conditioned(graph, 3, load, references=both[0], prompt=settings.prompt)
    latent = build.empty_latent(graph, 3, load, references=both[0], ratios="native")
    image = painted(graph, 4, load, condition, latent)
    graph.add("SaveImage", 5, 410, images=image[0], filename_prefix=f"uniworld/{name}")
    graph.note("The model", settings.about, 3, graph.below(condition), (None, 170))
    text = "The prompt calls the references *Picture 1*, *Picture 2* and so on. For a third, chain another **UniWorld Reference**."
    build.usage(graph, 4, text, (None, 130), gap=40)
    return graph


def loader(graph: Any) -> Any:
    """Add Load UniWorld with the model that the workflow is for."""
    from workflows.catalog import CATALOG

    from workflows import build

    model = {"checkpoint": CATALOG[graph.name].needs_model, "flux": "auto", "siglip": "auto"}
    return graph.add("UniWorldLoader", 0, build.TOP, **model, dtype="auto", device="default")


def painted(graph: Any, column: int, load: Any, condition: Any, latent: Any) -> Any:
    """Add the sampler and, in the next column, the VAE decoder. Returns the decoder."""
    from workflows import build

    wires = {"dit": load[2], "conditioning": condition[0], "latent": latent[0]}
    guidance = EDITS[graph.name].guidance
    sampler = graph.add("UniWorldSampler", column, build.SAMPLER, **wires, seed=0, guidance=guidance)
    wires = {"vae": load[3], "latent": sampler[0]}
    return graph.add("UniWorldVAEDecode", column + 1, build.DECODER, "Decode", collapsed=True, **wires)
