"""Writes the shared workflows, in editor form and in API form, and their sample pictures: python tests/workflows/build.py

The workflows are what people share and may be edited in the editor; this keeps them alike. What they show and
ask is in `samples.py`. A test holds what it makes against what is committed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

# Beside Load UniWorld; the addresses are those of the README.
WEIGHTS = (
    "**nano** ships with the package: it runs in seconds on any computer and knows only pictures of shapes, {side} pixels "
    "wide.\n\nFor photographs put {links} where the README says, and choose that *checkpoint* here. The rest follows."
)
LINKS = {
    "UniWorld-V1": "https://huggingface.co/LanguageBind/UniWorld-V1",
    "FLUX.1-dev": "https://huggingface.co/black-forest-labs/FLUX.1-dev",
    "SigLIP2": "https://huggingface.co/google/siglip2-so400m-patch16-512",
}
MODEL = "nano"
# Nano never saw T5's tokens: both of its stages drop T5, as the published ones do.
USE_T5 = False
BLUEPRINT = "Edit with UniWorld"
WORKFLOWS = ROOT / "workflows"
INPUT = WORKFLOWS / "input"

# Columns as (gap on the left, least width): Load UniWorld and pictures, references, prompt and size, sampler, decoder, result.
# A reference that is shown as its title alone needs less; so does a result below the decoder.
LOAD, READ, ASK, PAINT, DECODE, RESULT = (0, 200), (46, 200), (32, 200), (30, 200), (28, 110), (30, 200)
REFER, AFTER = (46, 126), (28, 200)
# Heights that leave ways for the wires: from Load UniWorld, over the columns between, to the sampler and the decoder.
TOP, DECODER, SAMPLER, SIZE, NOTE, PROMPT, REFERENCE, PICTURE = 0, 80, 112, 170, 284, 440, 490, 504


def all_graphs() -> list[Any]:
    """Every shared workflow."""
    from uniworld.uniworld_core.perception.tasks import TASKS

    graphs = [text_to_image(), edit(), multi_reference(), understand(), chat(), auto_route(), edit_with_mask()]
    return graphs + [perception(task) for task in TASKS]


def new(name: str, columns: tuple[tuple[int, int], ...], groups: tuple[tuple[str, int, int], ...]) -> Any:
    """An empty workflow."""
    from uniworld import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from uniworld.nodes.headless.builtin import nodes as builtin_nodes
    from workflows.catalog import CATALOG
    from workflows.editor_form import Graph

    titles = NODE_DISPLAY_NAME_MAPPINGS | builtin_nodes.NODE_DISPLAY_NAME_MAPPINGS
    classes = NODE_CLASS_MAPPINGS | builtin_nodes.NODE_CLASS_MAPPINGS
    known = {kind: (cls, titles.get(kind, kind)) for kind, cls in classes.items()}
    return Graph(name, known, columns, groups, CATALOG[name].about(name) if name in CATALOG else {})


def sample(graph: Any) -> Any:
    """What this workflow is set to."""
    from workflows.samples import SAMPLES

    return SAMPLES[graph.name]


def loader(graph: Any, note: bool = True) -> Any:
    """Load UniWorld, and below it what its models are."""
    from workflows.samples import SIDE

    # Named, so that a model folder on the builder's own machine is never the one that is written.
    load = graph.add(
        "UniWorldLoader", 0, TOP, checkpoint=MODEL, flux="auto", siglip="auto", dtype="auto", device="default"
    )
    if note:
        *most, last = (f"[{name}]({address})" for name, address in LINKS.items())
        text = WEIGHTS.format(side=SIDE, links=f"{', '.join(most)} and {last}")
        graph.note("The model", text, 0, TOP + NOTE, (None, 168))
    return load


def conditioned(graph: Any, column: int, load: Any, top: int = PROMPT, **inputs: Any) -> Any:
    wired = {"text": load[4]} if USE_T5 else {}
    return graph.add("UniWorldCondition", column, top, vlm=load[0], **wired, **inputs)


def empty_latent(graph: Any, column: int, load: Any, top: int = SIZE, **inputs: Any) -> Any:
    return graph.add("UniWorldEmptyLatent", column, top, **inputs, dit=load[2])


def picture(graph: Any, name: str, title: str = "Picture", column: int = 0, top: int = PICTURE, **shown: Any) -> Any:
    return graph.add("LoadImage", column, top, title, image=name, **shown)


def paint(graph: Any, column: int, load: Any, condition: Any, latent: Any, **shown: Any) -> Any:
    """Sampler and, in the next column, the VAE decoder; the decoded picture."""
    inputs = {"dit": load[2], "conditioning": condition[0], "latent": latent[0]}
    sampler = graph.add("UniWorldSampler", column, SAMPLER, **inputs, seed=sample(graph).seed, **shown)
    return graph.add("UniWorldVAEDecode", column + 1, DECODER, "Decode", collapsed=True, vae=load[3], latent=sampler[0])


def referred(
    graph: Any, load: Any, source: Any, top: int = REFERENCE, title: str = "", column: int = 1, **inputs: Any
) -> Any:
    """The reference of a picture."""
    wired = {"image": source[0], "siglip": load[1], "mask": source[1]}
    return graph.add("UniWorldReference", column, top, title, **wired, **inputs)


def text_to_image() -> Any:
    graph = new(
        "text_to_image",
        (LOAD, (46, 226), PAINT, DECODE, RESULT),
        (("Model", 0, 0), ("What to paint", 1, 1), ("Painting", 2, 3), ("Result", 4, 4)),
    )
    load = loader(graph)
    condition = conditioned(graph, 1, load, prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 1, load)
    image = paint(graph, 2, load, condition, latent)
    graph.add("SaveImage", 4, 50, images=image[0], filename_prefix="uniworld/text_to_image")
    text = "Write what to paint in **UniWorld Condition**, choose its shape with *width* and *height* above it, and **Run**."
    graph.note("What to do", text, 2, 600, (300, 90))
    return graph


def edit() -> Any:
    graph = new(
        "edit",
        (LOAD, READ, ASK, PAINT, DECODE, RESULT),
        (("Model and picture", 0, 0), ("What to change", 1, 2), ("Painting", 3, 4), ("Result", 5, 5)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = referred(graph, load, source)
    condition = conditioned(graph, 2, load, references=reference[0], prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 3, load, condition, latent)
    graph.add("SaveImage", 5, 50, images=image[0], filename_prefix="uniworld/edit")
    text = "Choose a picture on the left, write what to change in **UniWorld Condition**, and **Run**. What you do not speak of stays."
    graph.note("What to do", text, 3, 600, (300, 90))
    return graph


def multi_reference() -> Any:
    graph = new(
        "multi_reference",
        (LOAD, READ, (30, 144), ASK, PAINT, AFTER),
        (("Model and pictures", 0, 1), ("What to make of them", 2, 3), ("Painting", 4, 4), ("Result", 5, 5)),
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
    text = "The prompt speaks of the *first picture* and the *second picture*, in the order of the references. Chain another **UniWorld Reference** for a third."
    graph.note("What to do", text, 4, 620, (None, 130))
    return graph


def understand() -> Any:
    graph = new(
        "understand",
        (LOAD, READ, ASK, RESULT),
        (("Model and picture", 0, 0), ("Question", 1, 2), ("Answer", 3, 3)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = graph.add("UniWorldReference", 1, REFERENCE, image=source[0], mask=source[1])
    answer = graph.add(
        "UniWorldUnderstand", 2, 300, vlm=load[0], references=reference[0], prompt=sample(graph).task.prompt
    )
    graph.add("PreviewAny", 3, 300, "Answer", source=answer[0])
    text = "Choose a picture, ask about it in **UniWorld Understand**, and **Run**. Only the VLM is loaded: the other parts stay on disk."
    graph.note("What to do", text, 3, 490, (RESULT[1], 130))
    return graph


def chat() -> Any:
    graph = new(
        "chat",
        (LOAD, REFER, ASK, PAINT, AFTER, (46, 200), RESULT),
        (
            ("Model and picture", 0, 0),
            ("First turn", 1, 2),
            ("Painting", 3, 3),
            ("What came of it", 4, 4),
            ("Next turn", 5, 6),
        ),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = referred(graph, load, source, REFERENCE + 10, "Reference", collapsed=True)
    condition = conditioned(graph, 2, load, room=30, references=reference[0], prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 3, load, condition, latent, room=136)
    graph.add("SaveImage", 5, 350, images=image[0], filename_prefix="uniworld/chat")
    turn = graph.add("UniWorldChatTurn", 4, 470, image=image[0], conversation=condition[1])
    prompt = sample(graph).then.prompt
    answer = graph.add("UniWorldUnderstand", 5, TOP, vlm=load[0], conversation=turn[0], prompt=prompt)
    graph.add("PreviewAny", 6, TOP, "Answer", source=answer[0])
    text = (
        "**UniWorld Chat Turn** adds the painted picture to the conversation, so that the question is about it.\n\nTo go "
        "on with another edit, join *conversation* to a second **UniWorld Condition**, and *siglip* of **Load UniWorld** "
        "to Chat Turn. nano knows single instructions and only few second turns; UniWorld-V1 knows more."
    )
    graph.note("What happens", text, 6, 230, (None, 300))
    return graph


def auto_route() -> Any:
    graph = new(
        "auto_route",
        (LOAD, READ, (60, 200), (78, 200), PAINT, AFTER),
        (("Model and picture", 0, 0), ("Decide", 1, 2), ("Paint or answer", 3, 4), ("Result", 5, 5)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    prompt = graph.add("PrimitiveStringMultiline", 0, -160, "Prompt", room=20, value=sample(graph).task.prompt)
    reference = referred(graph, load, source)
    route = graph.add("UniWorldRoute", 2, -160, room=0, vlm=load[0], prompt=prompt[0], references=reference[0])
    condition = conditioned(graph, 3, load, 434, room=0, prompt=route[2], references=reference[0])
    latent = empty_latent(graph, 3, load, 162, references=reference[0])
    image = paint(graph, 4, load, condition, latent)
    answer = graph.add("UniWorldUnderstand", 3, 682, room=0, vlm=load[0], prompt=route[3], references=reference[0])
    graph.add("SaveImage", 5, 410, images=image[0], filename_prefix="uniworld/auto_route")
    graph.add("PreviewAny", 4, 682, "Answer", source=answer[0])
    graph.add("PreviewAny", 3, -160, "Probability of painting", source=route[1])
    text = (
        "The routing head reads the *Prompt*: either a picture is painted or a question answered, and only that branch "
        "runs. Try *How many objects are there?*"
    )
    graph.note("What to do", text, 1, 690, (320, 90))
    return graph


def edit_with_mask() -> Any:
    graph = new(
        "edit_with_mask",
        (LOAD, (40, 126), (40, 200), PAINT, (28, 92), (0, 200), (48, 140), (24, 200)),
        (("Model and picture", 0, 0), ("What to change", 1, 2), ("Painting", 3, 3), ("What changed", 4, 7)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0], top=-372)
    reference = referred(graph, load, source, -25, "Reference", collapsed=True)
    condition = conditioned(graph, 2, load, room=30, references=reference[0], prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 3, load, condition, latent)
    mask = graph.add("UniWorldEditMask", 5, -356, before=source[0], after=image[0])
    shown = graph.add("MaskToImage", 6, -300, "To image", collapsed=True, mask=mask[0])
    composite = graph.add(
        "UniWorldCompositeEdit", 6, -72, "Composite", collapsed=True, before=source[0], after=image[0], mask=mask[0]
    )
    graph.add("PreviewImage", 7, -330, "Edited area", images=shown[0])
    graph.add("SaveImage", 7, -34, images=composite[0], filename_prefix="uniworld/edit_with_mask")
    graph.add("PreviewImage", 6, 20, "Weight", images=mask[1])
    graph.add("PreviewAny", 6, 320, "Edited share", width=210, source=mask[2])
    text = (
        "**UniWorld Edit Mask** finds what the edit changed, with the weights that training would give it. *Composite* "
        "lays only that over the original."
    )
    graph.note("What happens", text, 5, 170, (200, 130))
    return graph


def perception(task_name: str) -> Any:
    from uniworld.uniworld_core.perception.tasks import TASKS

    task = TASKS[task_name]
    graph = new(
        f"perception_{task_name}",
        (LOAD, READ, ASK, PAINT, AFTER, (34, 200)),
        (("Model and picture", 0, 0), ("What to see", 1, 2), ("Painting", 3, 3), ("Map", 4, 5)),
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = referred(graph, load, source)
    ask = graph.add("UniWorldPerception", 1, 720, task=task_name, image=source[0], subject=sample(graph).subject)
    condition = conditioned(graph, 2, load, room=0, prompt=ask[0], references=reference[0])
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 3, load, condition, latent, room=176)
    text = "The model paints a map of the picture; **UniWorld Perception Head** turns it back into data."
    graph.note("What happens", text, 4, 730, (None, 90))
    # The map of the graph covers the lower right corner: where boxes are shown too, pictures get less room.
    boxes = task.head in ("boxes", "pose")
    room, top = (100, 180) if boxes else (180, 260)
    graph.add("PreviewImage", 5, 0, "As painted", room=room, images=image[0])
    head = graph.add("UniWorldPerceptionHead", 4, 480, task=task_name, painted=image[0], source=ask[1])
    graph.add("SaveImage", 5, top, "Map", room=room, images=head[0], filename_prefix=f"uniworld/{task_name}")
    graph.add("PreviewAny", 5, 388 if boxes else 552, "Summary", room=100, source=head[3])
    if boxes:
        graph.add("PreviewAny", 5, 562, "Boxes", room=100, source=head[2])
    return graph


def edit_blueprint() -> dict[str, Any]:
    """The whole edit as one node, for the node library."""
    from workflows.blueprint import Port, fold
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
    return fold(graph, BLUEPRINT, ports, {"image": image[0]})


def sample_pictures() -> dict[str, Any]:
    """The drawn pictures, by the name of their file."""
    from uniworld.training.shapes.world.draw import draw
    from workflows.samples import PICTURES

    return {name: draw(scene) for name, scene in PICTURES.items()}


def to_text(workflow: dict[str, Any]) -> str:
    return json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    import conftest  # noqa: F401  (makes the checkout importable as `uniworld`)
    from workflows.catalog import CATALOG

    for name, drawn in sample_pictures().items():  # the first: workflows name what lies there
        drawn.save(INPUT / name)
    for graph in all_graphs():
        file = WORKFLOWS / f"{CATALOG[graph.name].file}.json"
        file.write_text(to_text(graph.editor()), encoding="utf-8")
        (WORKFLOWS / "api" / f"{graph.name}.json").write_text(to_text(graph.api()), encoding="utf-8")
    subgraphs = ROOT / "subgraphs"
    subgraphs.mkdir(exist_ok=True)
    (subgraphs / f"{BLUEPRINT}.json").write_text(to_text(edit_blueprint()), encoding="utf-8")


if __name__ == "__main__":
    main()
