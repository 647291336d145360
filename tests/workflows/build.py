"""Writes the shared workflows, in editor form and in API form, and their sample pictures: python tests/workflows/build.py

The workflows are what people share and may be edited in the editor; this keeps fifteen of them alike. What they show and
ask is in `samples.py`. A test holds what it makes against what is committed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

WEIGHTS = (
    "It is set to **nano**, a small model that ships with the package: it runs in seconds on any computer and knows only "
    "pictures of shapes, {side} pixels wide.\n\nFor photographs choose your own *checkpoint* in **Load UniWorld** (README: "
    "where the weights go)."
)
T5 = "UniWorld-V1 can read the prompt with T5 too: join *text* of **Load UniWorld** to **UniWorld Condition**."
MODEL = "nano"
# Nano never saw T5's tokens: both of its stages drop T5, as the published ones do.
USE_T5 = False
BLUEPRINT = "Edit with UniWorld"
INPUT = ROOT / "workflows" / "input"


def all_graphs() -> list[Any]:
    """Every shared workflow."""
    from uniworld.uniworld_core.perception import TASKS

    graphs = [text_to_image(), edit(), multi_reference(), understand(), auto_route(), edit_with_mask()]
    return graphs + [perception(task) for task in TASKS]


def new(name: str, columns: list[str], text: str, paints: bool = True) -> Any:
    """A workflow; beside it stands the text, and what its model is."""
    from uniworld import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from uniworld.nodes.headless import builtin_nodes
    from workflows.editor_form import Graph
    from workflows.samples import SIDE

    titles = NODE_DISPLAY_NAME_MAPPINGS | builtin_nodes.NODE_DISPLAY_NAME_MAPPINGS
    classes = NODE_CLASS_MAPPINGS | builtin_nodes.NODE_CLASS_MAPPINGS
    known = {kind: (cls, titles.get(kind, kind)) for kind, cls in classes.items()}
    told = WEIGHTS.format(side=SIDE)
    return Graph(name, known, columns, "\n\n".join([text, told, *([T5] if paints and not USE_T5 else [])]))


def sample(graph: Any) -> Any:
    """What this workflow is set to."""
    from workflows.samples import SAMPLES

    return SAMPLES[graph.name]


def loader(graph: Any) -> Any:
    # Named, so that a model folder on the builder's own machine is never the one that is written.
    return graph.add("UniWorldLoader", 0, checkpoint=MODEL, flux="auto", siglip="auto", dtype="auto", device="default")


def conditioned(graph: Any, column: int, load: Any, **inputs: Any) -> Any:
    return graph.add("UniWorldCondition", column, vlm=load[0], **({"text": load[4]} if USE_T5 else {}), **inputs)


def empty_latent(graph: Any, column: int, load: Any, **inputs: Any) -> Any:
    return graph.add("UniWorldEmptyLatent", column, **inputs, dit=load[2])


def picture(graph: Any, name: str, title: str = "Picture") -> Any:
    return graph.add("LoadImage", 0, title, image=name)


def paint(graph: Any, column: int, load: Any, condition: Any, latent: Any) -> Any:
    """Sampler and VAE decode; the decoded picture."""
    inputs = {"dit": load[2], "conditioning": condition[0], "latent": latent[0]}
    sampler = graph.add("UniWorldSampler", column, **inputs, seed=sample(graph).seed)
    return graph.add("UniWorldVAEDecode", column, vae=load[3], latent=sampler[0])


def edited(graph: Any) -> tuple[Any, Any]:
    """The edit of a sample picture: the node that loads it, and the one that decodes the edited picture."""
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = graph.add("UniWorldReference", 1, image=source[0], siglip=load[1], mask=source[1])
    condition = conditioned(graph, 1, load, references=reference[0], prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 2, load, condition, latent)
    return source, image


def text_to_image() -> Any:
    graph = new(
        "text_to_image",
        ["1. Load", "2. Say what to paint", "3. Paint", "4. Result"],
        "# Text to image\nWrite what to paint, choose an aspect, run.",
    )
    load = loader(graph)
    condition = conditioned(graph, 1, load, prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 1, load)
    image = paint(graph, 2, load, condition, latent)
    graph.add("SaveImage", 3, images=image[0], filename_prefix="uniworld/text_to_image")
    return graph


def edit() -> Any:
    graph = new(
        "edit",
        ["1. Load", "2. Look and read", "3. Paint", "4. Result"],
        "# Edit a picture\nChoose a picture, say what to change, run. SigLIP keeps what is not to change.",
    )
    _, image = edited(graph)
    graph.add("SaveImage", 3, images=image[0], filename_prefix="uniworld/edit")
    return graph


def multi_reference() -> Any:
    graph = new(
        "multi_reference",
        ["1. Load", "2. Look and read", "3. Paint", "4. Result"],
        "# Several references\nChain a UniWorld Reference node for each picture; the prompt speaks of them in that order.",
    )
    load = loader(graph)
    titles = ("First picture", "Second picture")
    first, second = (picture(graph, *named) for named in zip(sample(graph).pictures, titles))
    one = graph.add("UniWorldReference", 1, "Reference 1", image=first[0], siglip=load[1], mask=first[1])
    two = graph.add(
        "UniWorldReference", 1, "Reference 2", image=second[0], siglip=load[1], references=one[0], mask=second[1]
    )
    condition = conditioned(graph, 1, load, references=two[0], prompt=sample(graph).task.prompt)
    latent = empty_latent(graph, 2, load, references=two[0])
    image = paint(graph, 2, load, condition, latent)
    graph.add("SaveImage", 3, images=image[0], filename_prefix="uniworld/multi_reference")
    return graph


def understand() -> Any:
    graph = new(
        "understand",
        ["1. Load", "2. Look and read", "3. Answer"],
        "# Ask about a picture\nOnly the VLM is loaded: SigLIP, the DiT and the VAE stay on disk.",
        paints=False,
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    reference = graph.add("UniWorldReference", 1, image=source[0], mask=source[1])
    answer = graph.add("UniWorldUnderstand", 1, vlm=load[0], references=reference[0], prompt=sample(graph).task.prompt)
    graph.add("PreviewAny", 2, "Answer", source=answer[0])
    return graph


def auto_route() -> Any:
    graph = new(
        "auto_route",
        ["1. Load", "2. Decide", "3. Paint", "4. Result"],
        "# Paint or answer\nThe routing head reads the instruction: either a picture is painted or a question "
        "answered. Only the branch that was chosen runs. Ask something in *Prompt*, such as *How many objects are "
        "there?*",
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    prompt = graph.add("PrimitiveStringMultiline", 1, "Prompt", value=sample(graph).task.prompt)
    reference = graph.add("UniWorldReference", 1, image=source[0], siglip=load[1], mask=source[1])
    route = graph.add("UniWorldRoute", 1, vlm=load[0], prompt=prompt[0], references=reference[0])
    condition = conditioned(graph, 2, load, prompt=route[2], references=reference[0])
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 2, load, condition, latent)
    answer = graph.add("UniWorldUnderstand", 3, vlm=load[0], prompt=route[3], references=reference[0])
    graph.add("SaveImage", 3, images=image[0], filename_prefix="uniworld/auto_route")
    graph.add("PreviewAny", 3, "Answer", source=answer[0])
    graph.add("PreviewAny", 3, "Probability of painting", source=route[1])
    return graph


def edit_with_mask() -> Any:
    graph = new(
        "edit_with_mask",
        ["1. Load", "2. Look and read", "3. Paint", "4. What changed", "5. Result"],
        "# Edit, and keep the rest to the bit\n*UniWorld Edit Mask* finds what the edit changed, with the weights that "
        "training would give it; *UniWorld Composite Edit* lays only that over the original.",
    )
    source, image = edited(graph)
    mask = graph.add("UniWorldEditMask", 3, before=source[0], after=image[0])
    shown = graph.add("MaskToImage", 3, mask=mask[0])
    graph.add("PreviewImage", 3, "Edited area", images=shown[0])
    graph.add("PreviewImage", 3, "Training weight", images=mask[1])
    composite = graph.add("UniWorldCompositeEdit", 4, before=source[0], after=image[0], mask=mask[0])
    graph.add("SaveImage", 4, images=composite[0], filename_prefix="uniworld/edit_with_mask")
    graph.add("PreviewAny", 4, "Edited share", source=mask[2])
    return graph


def perception(task_name: str) -> Any:
    from uniworld.uniworld_core.perception import TASKS

    task = TASKS[task_name]
    graph = new(
        f"perception_{task_name}",
        ["1. Load", "2. Look and read", "3. Paint the map", "4. Read the map"],
        f"# {task.display_name}\nThe model paints a map of the picture; *UniWorld Perception Head* turns it back into data.",
    )
    load, source = loader(graph), picture(graph, sample(graph).pictures[0])
    ask = graph.add("UniWorldPerception", 1, task=task_name, image=source[0], subject=sample(graph).subject)
    reference = graph.add("UniWorldReference", 1, image=ask[1], siglip=load[1], mask=source[1])
    condition = conditioned(graph, 1, load, prompt=ask[0], references=reference[0])
    latent = empty_latent(graph, 2, load, references=reference[0])
    image = paint(graph, 2, load, condition, latent)
    graph.add("PreviewImage", 2, "As painted", images=image[0])
    head = graph.add("UniWorldPerceptionHead", 3, task=task_name, painted=image[0], source=source[0])
    graph.add("SaveImage", 3, "Map", images=head[0], filename_prefix=f"uniworld/{task_name}")
    if task.head in ("boxes", "pose"):
        graph.add("PreviewAny", 3, "Boxes", source=head[2])
    graph.add("PreviewAny", 3, "Summary", source=head[3])
    return graph


def edit_blueprint() -> dict[str, Any]:
    """The whole edit as one node, for the node library."""
    from workflows.blueprint import Port, fold
    from workflows.samples import SAMPLES

    edit = SAMPLES["edit"]
    graph = new("edit_blueprint", ["1. Load", "2. Look and read", "3. Paint"], "")
    load = loader(graph)
    reference = graph.add("UniWorldReference", 1, siglip=load[1])
    condition = conditioned(graph, 1, load, references=reference[0], prompt=edit.task.prompt)
    latent = empty_latent(graph, 2, load, references=reference[0], area_side=0)
    inputs = {"dit": load[2], "conditioning": condition[0], "latent": latent[0]}
    sampler = graph.add("UniWorldSampler", 2, **inputs, seed=edit.seed, steps=28)
    image = graph.add("UniWorldVAEDecode", 2, vae=load[3], latent=sampler[0])
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
    from uniworld.training.shapes.draw import draw
    from workflows.samples import PICTURES

    return {name: draw(scene) for name, scene in PICTURES.items()}


def to_text(workflow: dict[str, Any]) -> str:
    return json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    import conftest  # noqa: F401  (makes the checkout importable as `uniworld`)

    for name, drawn in sample_pictures().items():  # the first: workflows name what lies there
        drawn.save(INPUT / name)
    for graph in all_graphs():
        (ROOT / "workflows" / f"{graph.name}.json").write_text(to_text(graph.editor()), encoding="utf-8")
        (ROOT / "workflows" / "api" / f"{graph.name}.json").write_text(to_text(graph.api()), encoding="utf-8")
    subgraphs = ROOT / "subgraphs"
    subgraphs.mkdir(exist_ok=True)
    (subgraphs / f"{BLUEPRINT}.json").write_text(to_text(edit_blueprint()), encoding="utf-8")


if __name__ == "__main__":
    main()
