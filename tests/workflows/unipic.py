"""The workflows of UniPic, whose weights do not ship: text to image, an edit put back into the whole image, and a question."""

from __future__ import annotations

from typing import Any

MODEL = "Skywork-UniPic-1.5B"
PICTURE = "cat.jpg"
# {name: (image in workflows/input or "", prompt)}.
PROMPTS = {
    "unipic_text_to_image": ("", "A red bicycle in front of a blue wall, morning light"),
    "unipic_edit": (PICTURE, "Make the cat's eyes bright blue."),
    "unipic_understand": (PICTURE, "What is in the picture?"),
}
ABOUT = (
    "Put [Skywork-UniPic-1.5B](https://huggingface.co/Skywork/Skywork-UniPic-1.5B) into `models/unipic` (README: *Where the "
    "weights go*): 12 GB, 5 GB in memory in bfloat16. SigLIP2 is not needed.\n\nRead the license there. The published code derives "
    "from Harmon, which is for non-commercial use."
)


def graphs() -> list[Any]:
    """Build the workflows of UniPic."""
    return [text_to_image(), edit(), understand()]


def loader(graph: Any, note: tuple[int | None, int] = (None, 250)) -> Any:
    """Add Load UniWorld and, below it, the note about the model."""
    from workflows import build

    model = {"checkpoint": MODEL, "flux": "auto", "siglip": "auto"}
    load = graph.add("UniWorldLoader", 0, build.TOP, **model, dtype="auto", device="default")
    graph.note("The model", ABOUT, 0, graph.below(load), note)
    return load


def painted(graph: Any, column: int, load: Any, condition: Any, iterations: int = 32) -> Any:
    """Add the sampler and, in the next column, the decoder. Returns the decoder."""
    from workflows import build

    wires = {"dit": load[2], "conditioning": condition[0], "vae": load[3]}
    sampler = graph.add("UniWorldUniPicSampler", column, build.SAMPLER, **wires, seed=0, iterations=iterations)
    return graph.add(
        "UniWorldVAEDecode", column + 1, build.DECODER, "Decode", collapsed=True, vae=load[3], latent=sampler[0]
    )


def text_to_image() -> Any:
    from workflows import build

    graph = build.new(
        "unipic_text_to_image",
        (build.LOAD, (46, 226), build.PAINT, build.DECODE, build.RESULT),
        (("Model", 0, 0), ("Prompt", 1, 1), ("Sampling", 2, 3), ("Result", 4, 4)),
    )
    load = loader(graph)
    condition = graph.add("UniWorldUniPicCondition", 1, 250, dit=load[2], prompt=PROMPTS[graph.name][1], negative="")
    image = painted(graph, 2, load, condition)
    graph.add("SaveImage", 4, 50, images=image[0], filename_prefix="uniworld/unipic_text_to_image")
    text = "Describe the image and press **Run**. The progress bar counts work; the preview shows revealed tokens over gray."
    graph.note("How to use", text, 4, 380, (None, 130))
    return graph


def edit() -> Any:
    from workflows import build

    graph = build.new(
        "unipic_edit",
        (build.LOAD, (70, 226), build.PAINT, (28, 92), (4, 200), (48, 140), (24, 200)),
        (("Model and image", 0, 0), ("Instruction", 1, 1), ("Sampling", 2, 2), ("Result", 3, 6)),
    )
    load = loader(graph)
    source = build.picture(graph, PICTURE, top=-400)
    wires = {"dit": load[2], "image": source[0], "vae": load[3]}
    condition = graph.add("UniWorldUniPicCondition", 1, 250, **wires, prompt=PROMPTS[graph.name][1], negative="")
    image = painted(graph, 2, load, condition)
    mask = graph.add("UniWorldEditMask", 4, -400, before=source[0], after=image[0], fit="crop")
    wires = {"before": source[0], "after": image[0], "mask": mask[0]}
    composite = graph.add("UniWorldCompositeEdit", 5, -72, "Composite", collapsed=True, **wires, fit="crop")
    graph.add("SaveImage", 6, -34, images=composite[0], filename_prefix="uniworld/unipic_edit")
    text = (
        "UniPic edits the square in the middle of the image. **UniWorld Composite Edit** puts what changed back into the whole "
        "image."
    )
    graph.note("How it works", text, 4, 170, (200, 150))
    return graph


def understand() -> Any:
    from workflows import build

    graph = build.new(
        "unipic_understand",
        (build.LOAD, build.READ, build.ASK, build.RESULT),
        (("Model and image", 0, 0), ("Question", 1, 2), ("Answer", 3, 3)),
    )
    load = loader(graph)
    source = build.picture(graph, PICTURE)
    reference = graph.add("UniWorldReference", 1, build.REFERENCE, image=source[0], mask=source[1])
    answer = graph.add(
        "UniWorldUnderstand", 2, 300, vlm=load[0], references=reference[0], prompt=PROMPTS[graph.name][1]
    )
    graph.add("PreviewAny", 3, 300, "Answer", source=answer[0])
    text = "Choose an image, ask about it, and press **Run**. UniPic reads the image with its VAE; its answers are short and weak."
    graph.note("How to use", text, 3, 490, (build.RESULT[1], 130))
    return graph
