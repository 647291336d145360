"""The workflows of ComfyUI's own nodes, which run in ComfyUI only.

What ComfyUI's nodes take is written here as ComfyUI 0.3.64 declares it, for the layout and the order of widgets.
"""

from __future__ import annotations

from typing import Any

_SAMPLERS, _SCHEDULERS = ["euler", "heun", "dpmpp_2m", "uni_pc"], ["simple", "sgm_uniform", "beta", "normal"]
_FLOAT = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}


def _node(returns: str, **required: Any) -> type:
    kinds = tuple(returns.split())
    return type(
        "Native",
        (),
        {"INPUT_TYPES": classmethod(lambda cls: {"required": required}), "RETURN_TYPES": kinds, "RETURN_NAMES": kinds},
    )


def _file(name: str) -> Any:
    return ([name], {"default": name})


DIT, CLIP, STYLE = (
    "uniworld_v1.safetensors",
    "uniworld_v1_qwen2.5_vl.safetensors",
    "uniworld_v1_siglip_redux.safetensors",
)
PROJECTOR, VISION, VAE = "uniworld_v1_projector.safetensors", "siglip2-so400m-patch16-512.safetensors", "ae.safetensors"
LORA = "uniworld_nano_negative.safetensors"
_HUB = "https://huggingface.co"
# Files of other publishers, at their public addresses: ComfyUI offers to download what is missing.
MODELS = {
    VAE: {
        "name": VAE,
        "url": f"{_HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors",
        "directory": "vae",
    },
    VISION: {
        "name": VISION,
        "url": f"{_HUB}/google/siglip2-so400m-patch16-512/resolve/main/model.safetensors",
        "directory": "clip_vision",
    },
}
_INT = {"default": 1024, "min": 16, "max": 16384, "step": 8}
CLASSES: dict[str, tuple[type, str]] = {
    "UNETLoader": (
        _node("MODEL", unet_name=_file(DIT), weight_dtype=(["default", "fp8_e4m3fn"],)),
        "Load Diffusion Model",
    ),
    "CLIPLoader": (
        _node("CLIP", clip_name=_file(CLIP), type=(["qwen_image"],), device=(["default", "cpu"],)),
        "Load CLIP",
    ),
    "VAELoader": (_node("VAE", vae_name=_file(VAE)), "Load VAE"),
    "CLIPVisionLoader": (_node("CLIP_VISION", clip_name=_file(VISION)), "Load CLIP Vision"),
    "StyleModelLoader": (_node("STYLE_MODEL", style_model_name=_file(STYLE)), "Load Style Model"),
    "LoraLoaderModelOnly": (
        _node(
            "MODEL",
            model=("MODEL",),
            lora_name=_file(LORA),
            strength_model=("FLOAT", _FLOAT | {"min": -100, "max": 100}),
        ),
        "LoraLoaderModelOnly",
    ),
    "ModelSamplingFlux": (
        _node(
            "MODEL",
            model=("MODEL",),
            max_shift=("FLOAT", _FLOAT | {"default": 1.15}),
            base_shift=("FLOAT", _FLOAT | {"default": 0.5}),
            width=("INT", _INT),
            height=("INT", _INT),
        ),
        "ModelSamplingFlux",
    ),
    "StyleModelApply": (
        _node(
            "CONDITIONING",
            conditioning=("CONDITIONING",),
            style_model=("STYLE_MODEL",),
            clip_vision_output=("CLIP_VISION_OUTPUT",),
            strength=("FLOAT", _FLOAT),
            strength_type=(["multiply", "attn_bias"],),
        ),
        "Apply Style Model",
    ),
    "KSampler": (
        _node(
            "LATENT",
            model=("MODEL",),
            seed=("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
            steps=("INT", {"default": 28, "min": 1, "max": 10000}),
            cfg=("FLOAT", _FLOAT | {"default": 1.0, "max": 100.0}),
            sampler_name=(_SAMPLERS,),
            scheduler=(_SCHEDULERS,),
            positive=("CONDITIONING",),
            negative=("CONDITIONING",),
            latent_image=("LATENT",),
            denoise=("FLOAT", _FLOAT),
        ),
        "KSampler",
    ),
    "VAEDecode": (_node("IMAGE", samples=("LATENT",), vae=("VAE",)), "VAE Decode"),
}
_WRITTEN = "`uniworld convert CHECKPOINT ComfyUI/models --to comfy --flux FLUX.1-dev`"
FILES = (
    f"{_WRITTEN} writes UniWorld's files:\n\n- `diffusion_models/{DIT}`\n- `text_encoders/{CLIP}`\n"
    f"- `text_encoders/{PROJECTOR}`\n- `style_models/{STYLE}`\n\nThe other two are published: "
    f"[{VAE}]({MODELS[VAE]['url']}) in `vae`, and [SigLIP2]({MODELS[VISION]['url']}), saved as "
    f"`clip_vision/{VISION}`."
)


def graphs() -> list[Any]:
    """Build the workflows for ComfyUI."""
    return [
        from_files("native_edit", "Replace the dog with a cat.", ("example.png",)),
        from_files(
            "native_multi_reference", "Put the object of the second image into the first image.", ("example.png",) * 2
        ),
        lora(),
    ]


def from_files(name: str, prompt: str, pictures: tuple[str, ...]) -> Any:
    """An edit of one or several images with the files that ComfyUI's loaders read."""
    from workflows.build import new

    graph = new(
        name,
        ((0, 250), (40, 210), (40, 240), (40, 240), (40, 240)),
        (("Models", 0, 0), ("Images", 1, 1), ("Instruction", 2, 2), ("Sampling", 3, 3), ("Result", 4, 4)),
    )
    graph.classes |= CLASSES
    model = graph.add("UNETLoader", 0, 0)
    clip = graph.add("CLIPLoader", 0, 130)
    vision = graph.add("CLIPVisionLoader", 0, 280)
    style = graph.add("StyleModelLoader", 0, 390)
    vae = graph.add("VAELoader", 0, 500)
    references: Any = None
    for number, file in enumerate(pictures):
        one = graph.add("LoadImage", 1, 440 * number, image=file)
        inputs = {} if references is None else {"references": references[0]}
        references = graph.add(
            "UniWorldReference", 1, 440 * number + 400, f"Reference {number + 1}", collapsed=True, image=one[0],
            mask=one[1], **inputs,
        )  # fmt: skip
    text = graph.add(
        "UniWorldTextEncode", 2, 0, clip=clip[0], projector=PROJECTOR, prompt=prompt, references=references[0]
    )
    seen = graph.add("UniWorldSigLIPEncode", 2, 340, clip_vision=vision[0], references=references[0])
    styled = graph.add(
        "StyleModelApply", 2, 450, conditioning=text[0], style_model=style[0], clip_vision_output=seen[0]
    )
    latent = graph.add("UniWorldEmptyLatent", 3, 0, area_side=1024, references=references[0])
    shifted = graph.add("ModelSamplingFlux", 3, 260, model=model[0], height=latent[2])
    shifted.inputs["width"] = latent[1]  # `width` of `add` is the node's own
    sampler = graph.add(
        "KSampler", 3, 480, model=shifted[0], positive=styled[0], negative=styled[0], latent_image=latent[0]
    )
    decoded = graph.add("VAEDecode", 4, 0, samples=sampler[0], vae=vae[0])
    graph.add("SaveImage", 4, 120, images=decoded[0], filename_prefix=f"uniworld/{name}")
    graph.note("Files", FILES, 4, 480, (None, 330))
    return graph


def lora() -> Any:
    """Text to image with nano and the LoRA that ships with it."""
    from workflows.build import MODEL, new

    graph = new(
        "native_lora",
        ((0, 230), (40, 250), (40, 240), (40, 240)),
        (("Model", 0, 0), ("LoRA and prompt", 1, 1), ("Sampling", 2, 2), ("Result", 3, 3)),
    )
    graph.classes |= CLASSES
    load = graph.add(
        "UniWorldLoader", 0, 0, checkpoint=MODEL, flux="auto", siglip="auto", dtype="auto", device="default"
    )
    loader = graph.add("LoraLoaderModelOnly", 1, 0, model=load[5], lora_name=LORA)
    prompt = "A picture of a large yellow star at the top and a large blue circle at the bottom on a navy background."
    condition = graph.add("UniWorldCondition", 1, 150, vlm=load[0], prompt=prompt)
    latent = graph.add("UniWorldEmptyLatent", 2, 0, dit=load[2])
    shifted = graph.add("ModelSamplingFlux", 2, 260, model=loader[0], height=latent[2])
    shifted.inputs["width"] = latent[1]  # `width` of `add` is the node's own
    sampler = graph.add(
        "KSampler", 2, 480, model=shifted[0], positive=condition[0], negative=condition[0], latent_image=latent[0]
    )
    decoded = graph.add("VAEDecode", 3, 0, samples=sampler[0], vae=load[6])
    graph.add("SaveImage", 3, 120, images=decoded[0], filename_prefix="uniworld/native_lora")
    text = (
        f"The LoRA `{LORA}` ships with nano. It was trained on inverted images and changes all colors. Set *strength_model* "
        "to 0, or bypass the loader, and they are those of the prompt.\n\nYour own LoRAs go to `models/loras`. Those for FLUX.1-dev fit UniWorld-V1, "
        "and not nano."
    )
    graph.note("How to use", text, 3, 480, (None, 190))
    return graph


def with_models(workflow: dict[str, Any]) -> dict[str, Any]:
    """Add the addresses of published files to the loaders that name them (`properties.models`)."""
    for node in workflow["nodes"]:
        models = [MODELS[value] for value in node["widgets_values"] if isinstance(value, str) and value in MODELS]
        if models and node["type"].endswith("Loader"):
            node["properties"]["models"] = models
    return workflow
