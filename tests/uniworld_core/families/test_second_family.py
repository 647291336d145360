"""A second model family, made here of a few hundred parameters: it paints through `uniworld run` as UniWorld-V1 does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from uniworld.__main__ import main
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.training.config.file import load_config
from uniworld.training.run.setup import open_encoder
from uniworld.uniworld_core import Condition, Conversation, UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families import table
from uniworld.uniworld_core.families.family import Family, FamilyParts, LoadedParts, PaintingFacts
from uniworld.uniworld_core.images.sizes import Size
from uniworld.uniworld_core.loading.folders import ModelFolders
from uniworld.uniworld_core.loading.meta import build
from uniworld.uniworld_core.loading.names import Names
from uniworld.uniworld_core.loading.parts import NetworkPart
from uniworld.uniworld_core.loading.settings import WIDTH, read_json, take
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER, shipped_names
from uniworld.uniworld_core.loading.storage import ComputeModule
from uniworld.uniworld_core.loading.weights import Shards
from uniworld.uniworld_core.sampling.flow import Shift, Velocity
from uniworld.uniworld_core.sampling.latents import LatentFormat

WORKFLOWS = Path(__file__).parents[3] / "workflows"
KIND = "mosaic_painter"
LETTERS, SIDE = 32, 64
# Unlike FLUX's in everything: channels, size of a cell, dimensions, and a shift and scale for every channel.
LATENTS = LatentFormat(
    name="mosaic",
    channels=4,
    factor=4,
    pack=1,
    shift=(0.0, 0.1, 0.2, 0.3),
    scale=(1.0, 2.0, 0.5, 1.5),
    rgb=(((0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5), (0.1, 0.1, 0.1), (0.0, 0.0, 0.0)),),
    ndim=5,
)
SHIFT = Shift(base_tokens=64, max_tokens=1024, base_mu=0.2, max_mu=0.9, terminal=0.02)


class Reader(ComputeModule):
    """Letters to tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, width)

    @torch.no_grad()
    def tokens(self, text: str) -> torch.Tensor:
        return self.letters(torch.tensor([[ord(letter) % LETTERS for letter in text]], device=self.device))


class MosaicPainter(ComputeModule):
    """A velocity for every cell, of the cell and the mean of the text."""

    latent_format, shift = LATENTS, SHIFT

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(LATENTS.channels + width, LATENTS.channels)

    def check(self, condition: Condition, shape: Sequence[int]) -> None:
        self.latent_format.size(shape)
        assert condition.pooled is None
        assert condition.tokens.shape[-1] == self.mix.in_features - LATENTS.channels

    def velocity_for(self, condition: Condition, guidance: float, shape: Sequence[int]) -> Velocity:
        text_BD = guidance * condition.to(self.device, self.dtype).repeat(shape[0]).tokens.mean(dim=1)

        def velocity(x_BC1hw: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
            cells = x_BC1hw.movedim(1, -1).to(self.dtype)
            text = text_BD[:, None, None, None].expand(*cells.shape[:-1], -1)
            return x_BC1hw - self.mix(torch.cat([cells, text], dim=-1)).float().movedim(-1, 1)

        return velocity


class MosaicVAE(ComputeModule):
    """Each cell is a square of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.paint = nn.Linear(LATENTS.channels, 3 * LATENTS.factor**2)

    @torch.no_grad()
    def decode(self, z_BC1hw: torch.Tensor) -> torch.Tensor:
        pixels = self.paint(z_BC1hw[:, :, 0].movedim(1, -1).to(self.device, self.dtype)).movedim(-1, 1)
        return torch.pixel_shuffle(pixels, LATENTS.factor).sigmoid().movedim(1, -1).float()


def mosaic_size(height: float, width: float, side: int) -> Size:
    """Twice as wide as high, whatever the picture."""
    return Size(side // 2, side)


class MosaicParts(FamilyParts):
    """All in one file; it has neither SigLIP nor CLIP nor T5."""

    facts = PaintingFacts(
        "Mosaic", LATENTS, SHIFT, native_side=SIDE, token_bytes=256, pixel_bytes=64, size_for=mosaic_size
    )

    def __init__(self, folder: Path) -> None:
        shards = Shards(folder)
        width = take(read_json(folder / "config.json"), {"width": WIDTH}, str(folder / "config.json"), ("width",))[
            "width"
        ]

        def part(prefix: str, make: Callable[[], nn.Module]) -> Callable[[], NetworkPart[Any]]:
            return lambda: NetworkPart(lambda: build(make), shards, lambda made: made, Names(((prefix, ""),)))

        described = {
            "understanding": part("reader.", lambda: Reader(width)),
            "dit": part("painter.", lambda: MosaicPainter(width)),
            "vae": part("vae.", MosaicVAE),
        }
        super().__init__("Mosaic", described, tuple(described))


class Mosaic(Family):
    """The family: it paints, and does nothing else."""

    name, companions = "Mosaic", ()

    def open(self, folders: ModelFolders) -> MosaicParts:
        return MosaicParts(folders.checkpoint)

    def encode(
        self, parts: LoadedParts, conversations: Sequence[Conversation], t5_length: int | None = None
    ) -> Condition:
        if t5_length is not None:
            parts["t5"]
        (conversation,) = conversations
        return Condition(parts["understanding"].tokens(conversation.instruction))


@pytest.fixture
def mosaic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The family in the table, and the folder of a model of it where the loader looks."""
    monkeypatch.setitem(table.FAMILIES, KIND, Mosaic)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models" / "uniworld" / "mosaic"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": KIND, "width": 8}), encoding="utf-8")
    torch.manual_seed(0)
    made = {"reader": Reader(8), "painter": MosaicPainter(8), "vae": MosaicVAE()}
    tensors = {f"{name}.{key}": t for name, module in made.items() for key, t in module.state_dict().items()}
    assert sum(tensor.numel() for tensor in tensors.values()) < 1000
    save_file(tensors, folder / "model.safetensors")
    yield folder
    host.install(None)


def uniworld(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


def run_node(node: str, **inputs: Any) -> Any:
    return NODE_CLASS_MAPPINGS[node]().execute(**inputs)


def load(folder: Path) -> Any:
    """The outputs of Load UniWorld for the model in this folder."""
    host.install(host.PlainHost(models=[folder.parents[1]]))
    return run_node("UniWorldLoader", checkpoint=folder.name, flux="auto", siglip="auto", dtype="float32", device="cpu")


def run_text_to_image(capsys: Any, *settings: str) -> tuple[int, str, str]:
    """`uniworld run` of the workflow that ships for text to image, with the second family as checkpoint."""
    options = ["1.checkpoint=mosaic", "1.dtype=float32", *settings]
    return uniworld(
        capsys,
        "run",
        str(WORKFLOWS / "api" / "text_to_image.json"),
        "--models",
        "models",
        *[word for setting in options for word in ("--set", setting)],
    )


def painted(model: UniWorld, prompt: str, seed: int = 0) -> torch.Tensor:
    return model.decode(model.sample(model.encode(prompt, use_t5=False), SIDE, SIDE, steps=3, guidance=2.0, seed=seed))


class TestPainting:
    def test_the_command_paints_what_the_library_paints(self, mosaic: Path, capsys: Any) -> None:
        code, out, err = run_text_to_image(capsys, "2.prompt=a mosaic", "4.seed=7", "4.steps=3", "4.guidance=2.0")
        assert code == 0, err
        with Image.open(out.splitlines()[-1].strip()) as picture:
            saved = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).reshape(
                SIDE, SIDE, 3
            )
        model = UniWorld.from_pretrained(mosaic, dtype=torch.float32)
        expected = painted(model, "a mosaic", seed=7)[0]
        assert torch.equal(saved, (expected * 255).to(torch.uint8))  # Save Image cuts, as ComfyUI's does
        assert (painted(model, "another", seed=7)[0] - expected).abs().max() > 0.01
        assert (painted(model, "a mosaic", seed=8)[0] - expected).abs().max() > 0.01

    def test_native_ratios_are_those_of_the_model(self, mosaic: Path) -> None:
        dit = load(mosaic)[2]
        given = {"width": 30, "height": 40, "area_side": 0, "batch_size": 1}
        assert run_node("UniWorldEmptyLatent", **given, ratios="native", dit=dit)[1:] == (SIDE, SIDE // 2)
        assert run_node("UniWorldEmptyLatent", **given, ratios="any_1ratio", dit=dit)[1:] == (SIDE, SIDE)
        unconnected = [run_node("UniWorldEmptyLatent", **given, ratios=name)[1:] for name in ("native", "any_11ratio")]
        assert unconnected == [(864, 1152)] * 2

    def test_a_conversation_paints_with_its_last_turn(self, mosaic: Path) -> None:
        model = UniWorld.from_pretrained(mosaic, dtype=torch.float32)
        refs = model.reference([Image.new("RGB", (9, 7))], use_siglip=False)
        assert model.encode("a mosaic", refs, use_t5=False).tokens.shape == (1, 8, 8)

    def test_a_chat_paints_and_keeps_the_picture_as_a_reference(
        self, mosaic: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("/paint a mosaic\n/paint a blue mosaic\nWhat is this?\n"))
        options = ("--models", "models", "--checkpoint", "mosaic", "--steps", "1")
        code, out, err = uniworld(capsys, "chat", *options)
        pictures = sorted(Path("output").rglob("*_painted.png"))
        assert (code, len(pictures)) == (0, 3), out + err  # it only paints, so every message is a prompt

    def test_its_latents_and_those_of_v1_do_not_meet(self, mosaic: Path, capsys: Any) -> None:
        flow = json.loads((WORKFLOWS / "api" / "text_to_image.json").read_text(encoding="utf-8"))
        loader = flow["1"]["inputs"] | {"checkpoint": "mosaic"}
        flow["20"] = {"class_type": "UniWorldLoader", "inputs": loader}
        decode = next(node for node in flow.values() if node["class_type"] == "UniWorldVAEDecode")
        decode["inputs"]["vae"] = ["20", 3]
        Path("mixed.json").write_text(json.dumps(flow), encoding="utf-8")
        fast = ("--set", "1.checkpoint=tiny", "--set", "4.steps=1", "--set", "3.area_side=64")
        code, _, err = uniworld(capsys, "run", "mixed.json", "--models", "models", *fast)
        assert code == 1
        assert "the family 'flux'" in err
        assert "the family 'mosaic'" in err


class TestWhatItLacks:
    def test_t5(self, mosaic: Path) -> None:
        with pytest.raises(UniWorldError, match="Mosaic has no T5"):
            UniWorld.from_pretrained(mosaic).encode("a mosaic", t5_length=8)

    def test_siglip(self, mosaic: Path) -> None:
        model = UniWorld.from_pretrained(mosaic)
        assert model.reference([Image.new("RGB", (9, 7))])[0].features is None
        with pytest.raises(UniWorldError, match="Mosaic has no SigLIP"):
            _ = model.siglip

    def test_answers_and_routing(self, mosaic: Path) -> None:
        model = UniWorld.from_pretrained(mosaic)
        with pytest.raises(UniWorldError, match="Mosaic does not answer in text"):
            model.understand("What is this?")
        with pytest.raises(UniWorldError, match="Mosaic has no routing head"):
            model.route("What is this?")

    @pytest.mark.parametrize(
        ("node", "inputs", "said"),
        [
            ("UniWorldUnderstand", {"max_new_tokens": 5, "temperature": 0.0, "seed": 0}, "does not answer in text"),
            ("UniWorldRoute", {}, "no routing head"),
        ],
    )
    def test_the_node_that_needs_it_says_so(
        self, mosaic: Path, capsys: Any, node: str, inputs: dict[str, Any], said: str
    ) -> None:
        loader = {"checkpoint": "mosaic", "flux": "auto", "siglip": "auto", "dtype": "float32", "device": "default"}
        flow = {
            "1": {"class_type": "UniWorldLoader", "inputs": loader},
            "2": {"class_type": node, "inputs": {"vlm": ["1", 0], "prompt": "What is this?", **inputs}},
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        }
        Path("flow.json").write_text(json.dumps(flow), encoding="utf-8")
        code, _, err = uniworld(capsys, "run", "flow.json", "--models", "models")
        assert code == 1
        assert "Mosaic" in err
        assert said in err

    def test_training(self, mosaic: Path, tmp_path: Path) -> None:
        config = load_config("stage1", [f"model.checkpoint={mosaic}", f"data.list={tmp_path / 'list.txt'}"])
        with pytest.raises(UniWorldError, match="is a Mosaic model; only UniWorld-V1 can be trained"):
            open_encoder(config)

    def test_a_folder_that_it_takes_none_of(self, mosaic: Path, capsys: Any) -> None:
        with pytest.raises(UniWorldError, match="Mosaic does not use a flux folder"):
            UniWorld.from_pretrained(mosaic, flux="tiny")

    def test_folders_that_were_chosen_are_ignored_with_one_note(self, mosaic: Path, capsys: Any) -> None:
        code, _, err = run_text_to_image(capsys, "1.flux=tiny", "1.siglip=nano", "4.steps=1")
        assert code == 0, err
        assert err.count("Mosaic has all its parts in its own folder; ignored: flux tiny, siglip nano.") == 1
        code, _, err = run_text_to_image(capsys, "1.siglip=auto", "4.steps=1")
        assert code == 0
        assert "ignored" not in err

    def test_an_empty_wire_of_an_optional_input_counts_as_unconnected(self, mosaic: Path) -> None:
        image = torch.zeros(1, 7, 9, 3)
        vlm, siglip, _, _, text, *_ = load(mosaic)
        assert not siglip.available
        assert not text.available
        (references,) = run_node("UniWorldReference", image=image, siglip=siglip)
        assert references[0].features is None
        read = run_node("UniWorldCondition", vlm=vlm, prompt="a mosaic", references=references, text=text)
        (longer,) = run_node(
            "UniWorldChatTurn", role="assistant", text="", image=image, siglip=siglip, conversation=read[1]
        )
        assert [len(turn.refs) for turn in longer.turns] == [1, 1]

    def test_the_wire_of_a_part_that_it_lacks_says_so_in_one_sentence_when_used(self, mosaic: Path) -> None:
        with pytest.raises(UniWorldError, match=r"^Mosaic has no SigLIP: [^.]*\.$"):
            load(mosaic)[1].on_device()


class TestTable:
    def test_a_family_without_encoding_is_refused(self) -> None:
        class Half(Family):
            name, companions = "Half", ()

            def open(self, folders: ModelFolders) -> MosaicParts:
                return MosaicParts(folders.checkpoint)

        with pytest.raises(TypeError, match="encode"):
            Half()  # type: ignore[abstract]

    def test_shipped_models_are_of_v1(self) -> None:
        for folder in SHIPPED_FOLDER.glob("*/uniworld"):
            assert table.family_of(folder).name == "UniWorld-V1"

    def test_diffusers_class_names_count_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(table.FAMILIES, "MosaicPipeline", Mosaic)
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MosaicPipeline"}), encoding="utf-8")
        assert table.family_of(tmp_path).name == "Mosaic"

    @pytest.mark.parametrize("kind", ["qwen2_5_vl", None, 5, ["univa_qwen2p5vl"]])
    def test_a_folder_of_no_family_names_those_there_are(self, tmp_path: Path, kind: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        with pytest.raises(UniWorldError, match=r"config\.json has model_type .*'univa_qwen2p5vl' \(UniWorld-V1\)"):
            UniWorld.from_pretrained(tmp_path)

    def test_a_folder_without_a_configuration_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UniWorldError, match=r"config\.json"):
            UniWorld.from_pretrained(tmp_path)

    def test_the_loader_lists_a_folder_by_either_file(self, mosaic: Path) -> None:
        other = mosaic.with_name("pipeline")
        other.mkdir()
        (other / "model_index.json").write_text(json.dumps({"_class_name": "MosaicPipeline"}), encoding="utf-8")
        host.install(host.PlainHost(models=[mosaic.parents[1]]))
        choices = NODE_CLASS_MAPPINGS["UniWorldLoader"].INPUT_TYPES()["required"]["checkpoint"][0]
        assert choices == ["mosaic", "pipeline", *shipped_names()]
