"""Write the shared workflows, in editor form and API form, and their sample images: python tests/workflows/build.py

Building them from code keeps their layout consistent. `samples.py` has their images and prompts. A test compares the
output with the committed files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

# The note below Load UniWorld. The addresses are those of the README.
WEIGHTS = (
    "**nano** ships with the package. It runs in seconds on any computer and knows only images of shapes at {side}x{side} "
    "pixels.\n\nFor photographs, download {links} (README: *Where the weights go*), and choose *UniWorld-V1* as checkpoint."
)
LINKS = {
    "UniWorld-V1": "https://huggingface.co/LanguageBind/UniWorld-V1",
    "FLUX.1-dev": "https://huggingface.co/black-forest-labs/FLUX.1-dev",
    "SigLIP2": "https://huggingface.co/google/siglip2-so400m-patch16-512",
}
MODEL = "nano"
# nano was trained without T5 tokens: both of its stages drop T5, as the published ones do.
USE_T5 = False
BLUEPRINT = "Edit with UniWorld"
WORKFLOWS = ROOT / "workflows"
INPUT = WORKFLOWS / "input"

# Columns as (left gap, minimum width): Load UniWorld and images, references, prompt and size, sampler, decoder, result.
# A collapsed reference needs less; so does a result below the decoder.
LOAD, READ, ASK, PAINT, DECODE, RESULT = (0, 200), (46, 200), (32, 200), (30, 200), (28, 110), (30, 200)
REFER, AFTER = (46, 126), (28, 200)
# Tops of the nodes, chosen so that links from Load UniWorld pass above the columns to the sampler and the decoder.
TOP, DECODER, SAMPLER, SIZE, PROMPT, REFERENCE = 0, 80, 112, 170, 440, 490


def all_graphs() -> list[Any]:
    """Build every shared workflow."""
    from uniworld.uniworld_core.perception.tasks import TASKS

    graphs = [text_to_image(), edit(), multi_reference(), understand(), chat(), auto_route(), edit_with_mask()]
    return graphs + [perception(task) for task in TASKS]


def new(name: str, columns: tuple[tuple[int, int], ...], groups: tuple[tuple[str, int, int], ...]) -> Any:
    """Create an empty workflow."""
    from uniworld import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from uniworld.nodes.headless.builtin import nodes as builtin_nodes
    from workflows.catalog import CATALOG
    from workflows.editor_form import Graph

    titles = NODE_DISPLAY_NAME_MAPPINGS | builtin_nodes.NODE_DISPLAY_NAME_MAPPINGS
    classes = NODE_CLASS_MAPPINGS | builtin_nodes.NODE_CLASS_MAPPINGS
    known = {kind: (cls, titles.get(kind, kind)) for kind, cls in classes.items()}
    return Graph(name, known, columns, groups, CATALOG[name].about(name) if name in CATALOG else {})


def sample(graph: Any) -> Any:
    """Return the images and prompts of a workflow."""
    from workflows.samples import SAMPLES

    return SAMPLES[graph.name]


def loader(graph: Any, note: bool = True) -> Any:
    """Add Load UniWorld and, below it, the note about the models."""
    from workflows.samples import SIDE

    # Set explicitly: the default would be the first model folder on the machine that builds the workflows.
    load = graph.add(
        "UniWorldLoader", 0, TOP, checkpoint=MODEL, flux="auto", siglip="auto", dtype="auto", device="default"
    )
    if note:
        *most, last = (f"[{name}]({address})" for name, address in LINKS.items())
        text = WEIGHTS.format(side=SIDE, links=f"{', '.join(most)} and {last}")
        graph.note("The model", text, 0, graph.below(load), (None, 128))
    return load


def conditioned(graph: Any, column: int, load: Any, top: int = PROMPT, **inputs: Any) -> Any:
    wired = {"text": load[4]} if USE_T5 else {}
    return graph.add("UniWorldCondition", column, top, vlm=load[0], **wired, **inputs)


def empty_latent(graph: Any, column: int, load: Any, top: int = SIZE, **inputs: Any) -> Any:
    return graph.add("UniWorldEmptyLatent", column, top, **inputs, dit=load[2])


def picture(
    graph: Any, name: str, title: str = "Picture", column: int = 0, top: int | None = None, **shown: Any
) -> Any:
    """Add Load Image, by default below the note about the models."""
    top = graph.below(graph.notes[0], 16) if top is None else top
    return graph.add("LoadImage", column, top, title, image=name, **shown)


def paint(
    graph: Any, column: int, load: Any, condition: Any, latent: Any, top: int = SAMPLER, decoder: int = DECODER
) -> Any:
    """Add the sampler and, in the next column, the VAE decoder. Returns the decoder."""
    inputs = {"dit": load[2], "conditioning": condition[0], "latent": latent[0]}
    sampler = graph.add("UniWorldSampler", column, top, **inputs, seed=sample(graph).seed)
    return graph.add("UniWorldVAEDecode", column + 1, decoder, "Decode", collapsed=True, vae=load[3], latent=sampler[0])


def usage(graph: Any, column: int, text: str, size: tuple[int | None, int] = (300, 90), gap: int = 20) -> None:
    """Add a note below the sampler."""
    sampler = next(node for node in graph.nodes if node.kind == "UniWorldSampler")
    graph.note("How to use", text, column, graph.below(sampler, gap), size)


def referred(
    graph: Any, load: Any, source: Any, top: int = REFERENCE, title: str = "", column: int = 1, **inputs: Any
) -> Any:
    """Add the reference of an image."""
    wired = {"image": source[0], "siglip": load[1], "mask": source[1]}
    return graph.add("UniWorldReference", column, top, title, **wired, **inputs)


def text_to_image() -> Any:
    graph = new(
        "text_to_image",
        (LOAD, (46, 226), PAINT, DECODE, RESULT),
        (("Model", 0, 0), ("Prompt", 1, 1), ("Sampling", 2, 3), ("Result", 4, 4)),
    )
    load = loader(graph)
    condition = conditioned(graph, 1, load, prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 1, load)
    image = paint(graph, 2, load, condition, latent)
    graph.add("SaveImage", 4, 50, images=image[0], filename_prefix="uniworld/text_to_image")
    text = "Describe the image in **UniWorld Condition**, set its aspect ratio with *width* and *height*, and press **Run**."
    usage(graph, 2, text)
    return graph


def edit() -> Any:
    graph = new(
        "edit",
        (LOAD, READ, ASK, PAINT, DECODE, RESULT),
        (("Model and image", 0, 0), ("Instruction", 1, 2), ("Sampling", 3, 4), ("Result", 5, 5)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = referred(graph, load, source)
    condition = conditioned(graph, 2, load, references=reference[0], prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 3, load, condition, latent)
    graph.add("SaveImage", 5, 50, images=image[0], filename_prefix="uniworld/edit")
    text = "Choose an image in **Picture**, write what to change in **UniWorld Condition**, and press **Run**. Everything else stays the same."
    usage(graph, 3, text)
    return graph


def multi_reference() -> Any:
    graph = new(
        "multi_reference",
        (LOAD, READ, (30, 144), ASK, PAINT, AFTER),
        (("Model and images", 0, 1), ("Prompt", 2, 3), ("Sampling", 4, 4), ("Result", 5, 5)),
    )
    load = loader(graph)
    names = sample(graph).pictures
    first = picture(graph, names[0], "First picture")
    second = picture(graph, names[1], "Second picture", 1, 600)
    one = referred(graph, load, first, 520, "Reference 1", collapsed=True)
    two = referred(graph, load, second, 490, "Reference 2", 2, references=one[0], collapsed=True)
    condition = conditioned(graph, 3, load, references=two[0], prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 3, load, references=two[0])
    image = paint(graph, 4, load, condition, latent)
    graph.add("SaveImage", 5, 410, images=image[0], filename_prefix="uniworld/multi_reference")
    text = "The prompt refers to the *first picture* and the *second picture*, in the order of the references. For a third, chain another **UniWorld Reference**."
    usage(graph, 4, text, (None, 130), gap=40)
    return graph


def understand() -> Any:
    graph = new(
        "understand",
        (LOAD, READ, ASK, RESULT),
        (("Model and image", 0, 0), ("Question", 1, 2), ("Answer", 3, 3)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = graph.add("UniWorldReference", 1, REFERENCE, image=source[0], mask=source[1])
    answer = graph.add(
        "UniWorldUnderstand", 2, 300, vlm=load[0], references=reference[0], prompt=sample(graph).task.prompt
    )
    graph.add("PreviewAny", 3, 300, "Answer", source=answer[0])
    text = "Choose an image, ask about it in **UniWorld Understand**, and press **Run**. Only the VLM is loaded; other parts stay on disk."
    graph.note("How to use", text, 3, 490, (RESULT[1], 130))
    return graph


def chat() -> Any:
    graph = new(
        "chat",
        (LOAD, (50, 126), (36, 200), (40, 200), (39, 200), (46, 200), RESULT),
        (
            ("Model and image", 0, 0),
            ("First turn", 1, 2),
            ("Sampling", 3, 3),
            ("First result", 4, 4),
            ("Next turn", 5, 6),
        ),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    # The sampler is higher and these three are lower than elsewhere, because the conversation is linked below the sampler.
    reference = referred(graph, load, source, REFERENCE + 90, "Reference", collapsed=True)
    condition = conditioned(
        graph, 2, load, PROMPT + 74, room=30, references=reference[0], prompt=sample(graph).task.prompt
    )
    latent = empty_latent(graph, 2, load, 224, references=reference[0])
    image = paint(graph, 3, load, condition, latent, 52, -10)
    graph.add("SaveImage", 5, 350, images=image[0], filename_prefix="uniworld/chat")
    turn = graph.add("UniWorldChatTurn", 4, 532, image=image[0], conversation=condition[1])
    prompt = sample(graph).then.prompt
    answer = graph.add("UniWorldUnderstand", 5, TOP, vlm=load[0], conversation=turn[0], prompt=prompt)
    graph.add("PreviewAny", 6, TOP, "Answer", source=answer[0])
    text = (
        "**UniWorld Chat Turn** adds the generated image to the conversation, so the question is about that image.\n\nTo "
        "continue with another edit, connect *conversation* to a second **UniWorld Condition**, and *siglip* of **Load "
        "UniWorld** to Chat Turn. nano has learned only single instructions, so its second turns are often wrong."
    )
    graph.note("How it works", text, 6, 230, (None, 300))
    return graph


def auto_route() -> Any:
    graph = new(
        "auto_route",
        (LOAD, READ, (60, 200), (78, 200), PAINT, AFTER),
        (("Model and image", 0, 0), ("Routing", 1, 2), ("Paint or answer", 3, 4), ("Result", 5, 5)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    prompt = graph.add("PrimitiveStringMultiline", 0, -154, "Prompt", room=20, value=sample(graph).task.prompt)
    reference = referred(graph, load, source)
    route = graph.add("UniWorldRoute", 2, -154, room=0, vlm=load[0], prompt=prompt[0], references=reference[0])
    condition = conditioned(graph, 3, load, 402, room=0, prompt=route[2], references=reference[0])
    latent = empty_latent(graph, 3, load, 162, references=reference[0])
    image = paint(graph, 4, load, condition, latent)
    answer = graph.add("UniWorldUnderstand", 3, 670, room=0, vlm=load[0], prompt=route[3], references=reference[0])
    graph.add("SaveImage", 5, 410, images=image[0], filename_prefix="uniworld/auto_route")
    graph.add("PreviewAny", 4, 682, "Answer", source=answer[0])
    graph.add("PreviewAny", 3, -154, "Probability of painting", source=route[1])
    text = (
        "The routing head reads the *Prompt* and selects a branch: paint an image or answer in text. Only that branch "
        "runs. Try *How many objects are there?*"
    )
    graph.note("How to use", text, 1, 690, (320, 90))
    return graph


def edit_with_mask() -> Any:
    graph = new(
        "edit_with_mask",
        (LOAD, (40, 126), (40, 200), PAINT, (28, 92), (0, 200), (48, 140), (24, 200)),
        (("Model and image", 0, 0), ("Instruction", 1, 2), ("Sampling", 3, 3), ("What changed", 4, 7)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0], top=-372)
    reference = referred(graph, load, source, -25, "Reference", collapsed=True)
    condition = conditioned(graph, 2, load, room=30, references=reference[0], prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 3, load, condition, latent)
    mask = graph.add("UniWorldEditMask", 5, -380, before=source[0], after=image[0])
    shown = graph.add("MaskToImage", 6, -300, "To image", collapsed=True, mask=mask[0])
    composite = graph.add(
        "UniWorldCompositeEdit", 6, -72, "Composite", collapsed=True, before=source[0], after=image[0], mask=mask[0]
    )
    graph.add("PreviewImage", 7, -330, "Edited area", images=shown[0])
    graph.add("SaveImage", 7, -34, images=composite[0], filename_prefix="uniworld/edit_with_mask")
    graph.add("PreviewImage", 6, 20, "Weight", images=mask[1])
    graph.add("PreviewAny", 6, 320, "Edited share", width=210, source=mask[2])
    text = (
        "**UniWorld Edit Mask** finds what the edit changed, with the loss weights of training. *Composite* copies only "
        "that part onto the original."
    )
    graph.note("How it works", text, 5, 170, (200, 130))
    return graph


def perception(task_name: str) -> Any:
    from uniworld.uniworld_core.perception.tasks import TASKS

    task = TASKS[task_name]
    graph = new(
        f"perception_{task_name}",
        (LOAD, READ, ASK, PAINT, (44, 200), (42, 200)),
        (("Model and image", 0, 0), ("Perception task", 1, 2), ("Sampling", 3, 3), ("Map", 4, 5)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = referred(graph, load, source)
    ask = graph.add("UniWorldPerception", 1, 720, task=task_name, image=source[0], subject=sample(graph).subject)
    condition = conditioned(graph, 2, load, room=0, prompt=ask[0], references=reference[0])
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 3, load, condition, latent)
    graph.add("PreviewImage", 5, -34, "Painted map", images=image[0])
    head = graph.add("UniWorldPerceptionHead", 4, 640, task=task_name, painted=image[0], source=ask[1])
    text = "The model paints a map of the image, and **UniWorld Perception Head** converts it to data."
    graph.note("How it works", text, 4, graph.below(head), (None, 90))
    saved = graph.add("SaveImage", 5, 264, "Map", images=head[0], filename_prefix=f"uniworld/{task_name}")
    # The editor's minimap covers the lower right corner, which leaves room for one text.
    shown = ("Boxes", head[2]) if task.head in ("boxes", "pose") else ("Summary", head[3])
    graph.add("PreviewAny", 5, graph.below(saved), shown[0], room=100, source=shown[1])
    return graph


def edit_blueprint() -> dict[str, Any]:
    """Build the blueprint: a complete edit as one node, for the node library."""
    from workflows.blueprint import Port, to_blueprint
    from workflows.samples import SAMPLES

    edit = SAMPLES["edit"]
    graph = new("edit_blueprint", (LOAD, READ, ASK, PAINT, DECODE), ())
    load = loader(graph, note=False)
    reference = graph.add("UniWorldReference", 1, REFERENCE, siglip=load[1])
    condition = conditioned(graph, 2, load, references=reference[0], prompt=edit.task.prompt)
    latent = empty_latent(graph, 2, load, references=reference[0], area_side=0)
    inputs = {"dit": load[2], "conditioning": condition[0], "latent": latent[0]}
    sampler = graph.add("UniWorldSampler", 3, SAMPLER, **inputs, seed=edit.seed, steps=28)
    image = graph.add("UniWorldVAEDecode", 4, DECODER, vae=load[3], latent=sampler[0])
    ports = [
        Port("image", ((reference, "image"),)),
        Port("prompt", ((condition, "prompt"),)),
        *(Port(name, ((load, name),)) for name in ("checkpoint", "flux", "siglip")),
        Port("area_side", ((latent, "area_side"),)),
        *(Port(name, ((sampler, name),)) for name in ("seed", "steps")),
    ]
    return to_blueprint(graph, BLUEPRINT, ports, {"image": image[0]})


def sample_pictures() -> dict[str, Any]:
    """Draw the sample images, by file name."""
    from uniworld.training.shapes.world.draw import draw
    from workflows.samples import PICTURES

    return {name: draw(scene) for name, scene in PICTURES.items()}


def to_text(workflow: dict[str, Any]) -> str:
    return json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    import conftest  # noqa: F401  (makes the checkout importable as `uniworld`)
    from workflows.catalog import CATALOG

    from workflows import families, native

    for name, drawn in sample_pictures().items():  # first, because the workflows refer to these files
        drawn.save(INPUT / name)
    for graph in all_graphs():
        file = WORKFLOWS / f"{CATALOG[graph.name].file}.json"
        file.write_text(to_text(graph.editor()), encoding="utf-8")
        (WORKFLOWS / "api" / f"{graph.name}.json").write_text(to_text(graph.api()), encoding="utf-8")
    for graph in native.graphs():  # no API form: the nodes are ComfyUI's
        file = WORKFLOWS / f"{CATALOG[graph.name].file}.json"
        file.write_text(to_text(native.with_models(graph.editor())), encoding="utf-8")
    for graph in families.graphs():  # no API form: the model does not ship
        file = WORKFLOWS / f"{CATALOG[graph.name].file}.json"
        file.write_text(to_text(graph.editor()), encoding="utf-8")
    subgraphs = ROOT / "subgraphs"
    subgraphs.mkdir(exist_ok=True)
    (subgraphs / f"{BLUEPRINT}.json").write_text(to_text(edit_blueprint()), encoding="utf-8")


if __name__ == "__main__":
    main()
