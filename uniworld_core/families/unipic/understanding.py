"""UniPic's answers to questions about a picture, which it reads with the VAE and MAR's encoder.

The paper describes SigLIP2 for this; the published program never calls it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch

from ...backbones.generation import OnToken, answer_settings, seeded, token_hooks
from ...loading.offload import explain_out_of_memory
from .condition import PictureCodec, as_tokens
from .config import UNIPIC_LATENTS
from .network import UniPic
from .prompts import Request, padded, question_text


@torch.inference_mode()
def answer(
    model: UniPic,
    vae: PictureCodec | None,
    requests: Sequence[Request],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    callback: Callable[[int], None] | None = None,
    side: int | None = None,
) -> list[str]:
    """Answer questions, one after another.

    Args:
        vae: the model's VAE; None for questions without pictures.
        max_new_tokens: maximum length of an answer.
        temperature: 0 for greedy decoding, as published.
        seed: seed for sampling at temperatures above 0. The global random state is restored.
        callback: called with the number of tokens so far. An exception from it ends the answer.
        side: side in pixels at which pictures are read; None for the native one.

    Raises:
        UniWorldError: an argument is out of range, or a prompt is too long.
    """
    rows = [answer_ids(model, vae, one, max_new_tokens, temperature, seed, callback, side) for one in requests]
    return [
        str(model.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for row in rows
    ]


@torch.inference_mode()
def answer_ids(
    model: UniPic,
    vae: PictureCodec | None,
    request: Request,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    callback: Callable[[int], None] | None = None,
    side: int | None = None,
) -> torch.Tensor:
    """Return the token ids (new,) of an answer; arguments and errors as in `answer`."""
    return generate_ids(model, question(model, vae, request, side), max_new_tokens, temperature, seed, callback)


@torch.inference_mode()
def generate_ids(
    model: UniPic,
    tokens_TD: torch.Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    callback: Callable[[int], None] | None = None,
    on_token: OnToken | None = None,
) -> torch.Tensor:
    """Return the token ids (new,) of the answer to a prompt.

    The repetition penalty of the folder's generation_config.json applies to greedy decoding too, as published. It counts the
    tokens of the answer only.

    Args:
        tokens_TD: embeddings of the prompt, from `question`.
        on_token: called after each token with its id and the log-probabilities of all tokens in its place, with the
            penalty and before the temperature. An exception from it ends the answer.

    For the other arguments and the errors see `answer`.
    """
    config = answer_settings(model.generation, model.tokenizer.pad_token_id, max_new_tokens, temperature)
    with explain_out_of_memory(model, "picture"), seeded(seed, model.device):
        tokens = tokens_TD[None]
        with warnings.catch_warnings():
            # transformers says so of a penalty that counts the tokens of the answer only, which is as published.
            warnings.filterwarnings("ignore", "Passing `repetition_penalty`")
            ids: torch.Tensor = model.network.llm.generate(
                inputs_embeds=tokens,
                attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device),
                generation_config=config,
                **token_hooks(0, callback, on_token),
            )
    return ids[0]


@torch.inference_mode()
def question(model: UniPic, vae: PictureCodec | None, request: Request, side: int | None = None) -> torch.Tensor:
    """Return the embeddings (T, D) of a question with its picture."""
    if request.picture is None:
        return model.embed(question_text(request.prompt, picture=False))
    assert vae is not None, "pictures need a VAE"
    side = side or model.config.native_side
    with explain_out_of_memory(model, "picture"):
        z_1Chw = UNIPIC_LATENTS.to_model(vae.encode(padded(request.picture, side)))
        grid = (z_1Chw.shape[-2], z_1Chw.shape[-1])
        seen = model.for_llm(model.read_picture(as_tokens(z_1Chw), grid))[0]
    return model.embed(question_text(request.prompt), seen)
