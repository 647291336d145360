"""Edit an image with nano, save the result, and ask about it: python docs/examples/edit_picture.py IMAGE PROMPT RESULT"""

from __future__ import annotations

import sys

import torch
from PIL import Image
from uniworld.uniworld_core import UniWorld

SIDE = 128  # image size of nano, in pixels; that of UniWorld-V1 is about 1024


def main(picture: str, prompt: str, result: str) -> None:
    model = UniWorld.from_pretrained("nano", dtype=torch.float32)
    refs = model.reference([Image.open(picture)])
    condition = model.encode(prompt, refs=refs, use_t5=False)  # nano was trained without T5
    image = model.decode(model.sample(condition, height=SIDE, width=SIDE, seed=0))[0]
    painted = Image.fromarray((image * 255).round().byte().cpu().numpy())
    painted.save(result)
    print("Saved", result)
    print(model.understand("How many objects are there?", refs=model.reference([painted])))


if __name__ == "__main__":
    main(*sys.argv[1:])
