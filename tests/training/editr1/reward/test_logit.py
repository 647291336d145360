"""The logit reward: scores from logits, questions, judges, and a weighted mean with other rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from uniworld.training.editr1.reward.judges import QwenJudge, TransformersJudge, open_judge
from uniworld.training.editr1.reward.logit import LogitReward
from uniworld.training.editr1.reward.protocol import RewardFailure, RewardItem, Score
from uniworld.training.editr1.reward.question import Question, QuestionTemplate, read_question
from uniworld.training.editr1.reward.score_tokens import DIGITS, expected_score, score_of_logprobs
from uniworld.training.editr1.reward.weighted import WeightedReward
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.qwen_files import read_tokenizer
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER
from uniworld.uniworld_core.prompts.text import IMAGE_PAD


def item(prompt: str = "Make it red.", requirement: str = "") -> RewardItem:
    return RewardItem(prompt, (Image.new("RGB", (8, 8), "blue"),), Image.new("RGB", (8, 8), "red"), requirement)


class KnownJudge:
    """A judge whose logits say the length of the question's text, and which rejects the word "bad"."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def token_id(self, answer: str) -> int:
        return {"no": 3, "yes": 7}[answer]

    def logits(self, questions: Sequence[Question]) -> torch.Tensor:
        self.asked.append(len(questions))
        if any("bad" in question.text for question in questions):
            raise UniWorldError("a question is too long")
        logits = torch.full((len(questions), 9), 50.0)
        logits[:, 3] = 0
        logits[:, 7] = torch.tensor([float("nan") if "nan" in q.text else len(q.text) / 10 for q in questions])
        return logits


def test_scores_are_expectations_over_the_tokens_of_the_answers() -> None:
    logits = torch.zeros(3, 10)
    logits[0, 2], logits[1, 4], logits[2, 9] = 100, 100, 100
    scores = expected_score(logits, [2, 3, 4])
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))


def test_logprobs_of_a_server_give_the_same_score() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 2
    logits[0, 15:21] += 8
    logprobs = logits.double().log_softmax(dim=-1)[0]
    tokens = {**{15 + i: digit for i, digit in enumerate(DIGITS)}}
    listed = {tokens.get(int(i), f"<{i}>"): float(logprobs[i]) for i in logprobs.topk(20).indices}
    score = score_of_logprobs(listed, DIGITS)
    assert score == pytest.approx(float(expected_score(logits, range(15, 21))), abs=1e-12)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"Sure": -0.1, "The": -2.0}, "none of the answers"),
        (
            {"5": -0.5, "4": -1.0, "x": -1.5},
            r"the answers 0, 1, 2, 3 are not among .* may have \d+% of the probability",
        ),
        ({"5": 0.5}, "above 0 or not a number"),
        ({"5": float("nan")}, "above 0 or not a number"),
        ({"5": -9999.0, "The": 0.0}, "none of the answers"),
    ],
)
def test_logprobs_that_do_not_determine_a_score_are_errors(listed: dict[str, float], message: str) -> None:
    with pytest.raises(UniWorldError, match=message):
        score_of_logprobs(listed, DIGITS)
    assert score_of_logprobs({"5": -0.001, "x": -9.0}, DIGITS) == 1.0


def test_a_failed_question_is_a_failure_of_its_item_only() -> None:
    judge = KnownJudge()
    reward = LogitReward(judge, lambda one: Question(one.prompt, (one.picture,)), ("no", "yes"), batch=2)
    scores = reward.score([item(""), item("bad"), item("x" * 1000), item("nan"), item("")])
    assert scores[0] == scores[4] == 0.5
    assert scores[2] == 1.0
    assert scores[1] == RewardFailure("a question is too long")
    assert scores[3] == RewardFailure("the judge's logits are NaN or infinite")
    assert judge.asked == [2, 1, 1, 2, 1]


@pytest.mark.parametrize("answers", [("yes",), ("yes", "yes"), ("", "yes"), ()])
def test_answers_must_be_different_words(answers: tuple[str, ...]) -> None:
    with pytest.raises(UniWorldError, match="two or more different words"):
        LogitReward(KnownJudge(), answers=answers)


# --- questions --------------------------------------------------------------------------------------------------------


def test_the_template_names_instruction_and_requirement() -> None:
    one = item("Use {requirement} and {instruction}.", "The {instruction} stays.")
    question = QuestionTemplate("Do: {instruction}\nCheck: {requirement}\nGrade.")(one)
    assert question.text == "Do: Use {requirement} and {instruction}.\nCheck: The {instruction} stays.\nGrade."
    assert question.pictures == (*one.references, one.picture)
    assert QuestionTemplate("Do: {instruction}\nCheck: {requirement}\nGrade.")(item("x")).text == "Do: x\nGrade."
    text = QuestionTemplate()(item("Make it red.")).text
    assert "Make it red." in text
    assert "{" not in text
    assert "satisfy" not in text


def test_a_template_file_must_be_text_with_the_field(tmp_path: Path) -> None:
    file = tmp_path / "question.txt"
    file.write_text("Is {instruction} done?", encoding="utf-8")
    assert read_question(file)(item("it")).text == "Is it done?"
    for data, message in ((b"\xff\xfe", "is not UTF-8"), (b"no field", r"question.txt: The template has no \{instr")):
        file.write_bytes(data)
        with pytest.raises(UniWorldError, match=message):
            read_question(file)
    with pytest.raises(UniWorldError, match="does not exist"):
        read_question(tmp_path / "none.txt")


# --- judges -----------------------------------------------------------------------------------------------------------


def test_uniworlds_own_reader_judges(model: UniWorld) -> None:
    judge = QwenJudge(model.vlm, pictures_first=False)
    reward = LogitReward(judge)
    items = [item(), item("Remove the blue square, and paint three more circles.")]
    together, alone = reward.score(items), [reward.score([one])[0] for one in items]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(isinstance(score, float) and 0 < score < 1 for score in together)
    question = QuestionTemplate()(items[0])
    inputs = model.vlm.inputs([question.text], [question.pictures])
    logits = model.vlm.qwen.lm_head(model.vlm.hidden_states(inputs)[:, -1])
    torch.testing.assert_close(judge.logits([question]), logits)
    with pytest.raises(UniWorldError, match="tokens of the judge: choose answers of one token each"):
        judge.token_id("no such answer")
    assert isinstance(reward.score([item("<|im_end|>")])[0], RewardFailure)


def test_judges_are_opened_by_the_kind_of_their_folder(model: UniWorld, tmp_path: Path) -> None:
    judge = open_judge("tiny", dtype=torch.float32)
    question = Question("A red circle?", (Image.new("RGB", (56, 56), "red"),))
    assert judge.logits([question]).shape == (1, model.vlm.config.vocab_size)
    with pytest.raises(UniWorldError, match="aspect ratios up to 200:1"):
        judge.logits([Question("A line?", (Image.new("RGB", (1, 300)),))])
    with pytest.raises(UniWorldError, match="'none' does not exist"):
        open_judge("none")
    (tmp_path / "config.json").write_text('{"model_type": "unknown"}')
    with pytest.raises(UniWorldError, match="cannot be loaded as an image-text model"):
        open_judge(str(tmp_path), dtype=torch.float32)
    with pytest.raises(UniWorldError, match=r"storage 'int8' works for Qwen2.5-VL only"):
        open_judge(str(tmp_path), dtype=torch.float32, storage="int8")


def write_llava(folder: Path) -> None:
    """A LLaVA of one layer with random weights, and the tokenizer of the shipped tiny model."""
    transformers = pytest.importorskip("transformers")
    tokenizer = read_tokenizer(SHIPPED_FOLDER / "tiny" / "uniworld")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **small).to_dict()
    text = transformers.LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **small).to_dict()
    token = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=token, image_token_index=token, vision_feature_layer=-1
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    parts = (
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image_pad|>{% else %}{{ part['text'] }}"
    )
    chat = "{% for message in messages %}USER: " + parts + "{% endif %}{% endfor %}{% endfor %} ANSWER:"
    transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token=IMAGE_PAD,
        num_additional_image_tokens=1,
        chat_template=chat,
    ).save_pretrained(folder)


def test_another_image_text_model_of_transformers_judges(tmp_path: Path) -> None:
    write_llava(tmp_path)
    judge = open_judge(str(tmp_path), dtype=torch.float32)
    assert isinstance(judge, TransformersJudge)
    reward = LogitReward(judge, ask=lambda one: Question(one.prompt, (*one.references, one.picture)))
    swapped = RewardItem("Red?", (Image.new("RGB", (8, 8), "red"),), Image.new("RGB", (9, 8), "blue"))
    scores = reward.score([item("Red?"), swapped, item("Red?")])
    assert all(isinstance(score, float) and 0 < score < 1 for score in scores)
    assert scores[0] == scores[2] != scores[1]
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UniWorldError, match="has no chat template"):
        open_judge(str(tmp_path), dtype=torch.float32)


# --- several rewards --------------------------------------------------------------------------------------------------


class Fixed:
    def __init__(self, name: str, scores: Sequence[Score]) -> None:
        self.name, self._scores, self.closed = name, scores, False
        self.seen: list[RewardItem] = []

    def score(self, items: Sequence[RewardItem]) -> Sequence[Score]:
        self.seen = list(items)
        return [self._scores[int(one.prompt)] for one in items]

    def close(self) -> None:
        self.closed = True


def test_a_weighted_mean_fails_where_a_part_fails() -> None:
    first, second = Fixed("first", [1.0, RewardFailure("lost"), 0.5]), Fixed("second", [0.0, 1.0, 2.0])
    reward = WeightedReward([(first, 3), (second, 1)])
    scores = reward.score([item("0"), item("1"), item("2")])
    assert scores[0] == 0.75
    assert scores[1] == RewardFailure("first: lost")
    assert isinstance(scores[2], RewardFailure)
    assert scores[2].reason.startswith("second: the score is 2.0")
    assert [one.prompt for one in second.seen] == ["0", "2"]
    assert reward.name == "0.75 first + 0.25 second"
    reward.close()
    assert first.closed
    assert second.closed
    for parts in ([], [(first, 0)], [(first, float("nan"))], [(first, True)]):
        with pytest.raises(UniWorldError, match=r"has no parts|must be above 0"):
            WeightedReward(parts)  # type: ignore[arg-type]
