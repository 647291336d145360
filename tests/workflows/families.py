"""The workflows of other model families, whose models do not ship. They run wherever UniWorld's nodes do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FamilyEdit:
    """An edit with a model of another family.

    Attributes:
        prompt: the instruction.
        picture: the image to edit, a file in workflows/input.
        guidance: the guidance that its publisher recommends.
        about: the note about the model: what to download, memory and license.
    """

    prompt: str
    picture: str
    guidance: float
    about: str


EDITS = {
    "kontext_edit": FamilyEdit(
        "Change the cat's eyes to bright blue.",
        "cat.jpg",
        2.5,
        "[FLUX.1-Kontext-dev](https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev) is for non-commercial use. Accept "
        "its license there, then run `hf download` as in the README (*Where the weights go*): 34 GB in "
        "`models/diffusers`.\n\nWith *storage* int8 its DiT takes 12 GB. `flux` and `siglip` are ignored.",
    ),
}


def graphs() -> list[Any]:
    """Build the workflows of other families."""
    from workflows import unipic

    return [*(edit(name) for name in EDITS), *unipic.graphs()]


def edit(name: str) -> Any:
    """An edit of an image, laid out as the first of the shared workflows."""
    from workflows.catalog import CATALOG

    from workflows import build

    settings = EDITS[name]
    graph = build.new(
        name,
        (build.LOAD, build.READ, build.ASK, build.PAINT, build.DECODE, (30, 220)),
        (("Model and images", 0, 0), ("Instruction", 1, 2), ("Sampling", 3, 4), ("Result", 5, 5)),
    )
    model = {"checkpoint": CATALOG[name].needs_model, "flux": "auto", "siglip": "auto"}
    load = graph.add("UniWorldLoader", 0, build.TOP, **model, dtype="auto", device="default")
    source = build.picture(graph, settings.picture, top=graph.below(load))
    reference = graph.add("UniWorldReference", 1, build.REFERENCE, image=source[0], mask=source[1])
    condition = build.conditioned(graph, 2, load, references=reference[0], prompt=settings.prompt)
    latent = build.empty_latent(graph, 2, load, references=reference[0], ratios="native")
    wires = {"dit": load[2], "conditioning": condition[0], "latent": latent[0]}
    sampler = graph.add("UniWorldSampler", 3, build.SAMPLER, **wires, seed=0, guidance=settings.guidance)
    image = graph.add("UniWorldVAEDecode", 4, build.DECODER, "Decode", collapsed=True, vae=load[3], latent=sampler[0])
    graph.add("SaveImage", 5, 50, images=image[0], filename_prefix=f"uniworld/{name}")
    graph.note("The model", settings.about, 5, 380, (None, 270))
    text = (
        "Choose an image, write what to change in **UniWorld Condition**, and press **Run**. For another image, chain a second "
        "**UniWorld Reference**. *ratios* `native` takes the sizes that the model was trained for."
    )
    build.usage(graph, 3, text, (300, 110))
    return graph
