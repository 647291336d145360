"""Small folders in the layouts of the benchmarks, with prompts of our own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

KINDS = ("add", "adjust", "remove")
PROMPT = "Rate the edit.\nThe instruction was: <edit_prompt>\n"


def imgedit(folder: Path, count: int = 6, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """Write a folder like the unpacked Benchmark.tar. Two items share each source picture."""
    root = folder / "Benchmark" / "singleturn"
    items = {}
    for number in range(count):
        name = f"animal/{number // 2:09d}.jpg"
        (root / "animal").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (10 * number, 100, 50)).save(root / name)
        items[str(number)] = {"id": name, "prompt": f"Edit {number}.", "edit_type": kinds[number % len(kinds)]}
    (root / "singleturn.json").write_text(json.dumps(items))
    (root / "judge_prompt.json").write_text(json.dumps({kind: f"{kind}: {PROMPT}" for kind in kinds}))
    return items


TURN_TASKS = ("content_memory", "content_understand", "version_backtrace")


def imgedit_turns(folder: Path) -> list[str]:
    """Write a folder like the multi-turn items of Benchmark.tar. Returns the names of the results."""
    names = []
    for number, task in enumerate(TURN_TASKS):
        root = folder / "Benchmark" / "multiturn" / task
        root.mkdir(parents=True)
        lines = []
        for place, turns in enumerate((3, 2)):
            name = f"{number}{place}.jpg"
            Image.new("RGB", (24, 16), (30 * number, 100 * place, 50)).save(root / name)
            lines.append({"id": name, **{f"turn{turn}": f"Edit {turn} of {name}." for turn in range(1, turns + 1)}})
            group = ("content_memory", "content_understanding", "version_backtracking")[number]
            names += [f"{group}/{place + 1}_turn{turn}" for turn in range(1, turns + 1)]
        (root / "annotation.json").write_text("".join(json.dumps(one) + "\n" for one in lines))
        (root / "._annotation.json").write_bytes(b"\x00\x05")  # as macOS packs it
    return names


def results(folder: Path, names: list[str]) -> Path:
    """Write a result for each name, such as "3" or "add/en/3"."""
    for place, name in enumerate(names):
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (200, 7 * place % 256, 90)).save(file)
    return folder


GEDIT_PROMPTS = """
_context_no_delimit = "Context."
_prompts_0shot_two_image_edit_rule = "Two pictures."
_prompts_0shot_tie_rule_SC = "Editing instruction: <instruction>"
_prompts_0shot_rule_PQ = "Quality."
raise SystemExit("this file must not be executed")
"""


def gedit(
    folder: Path, groups: tuple[str, ...] = ("color_alter", "ps_human"), arrow: bool = False, repeat: bool = False
) -> list[str]:
    """Write a data set in the columns of GEdit-Bench, in English and Chinese. Returns the names of the English results.

    Args:
        repeat: whether a further row, the last, has the first key.
    """
    import pyarrow
    from pyarrow import ipc, parquet

    (folder / "viescore").mkdir(parents=True)
    (folder / "viescore" / "vie_prompts.py").write_text(GEDIT_PROMPTS)
    rows = []
    for group in groups:
        for number in range(2):
            for language, text in (("en", f"Edit {number} of {group}."), ("cn", f"编辑 {number}。")):
                rows.append(
                    {
                        "task_type": group,
                        "key": f"k{number}",
                        "instruction": text,
                        "instruction_language": language,
                        "input_image": {"bytes": png((30, 20), number), "path": None},
                        "input_image_raw": {"bytes": png((60, 40), number), "path": None},
                        "Intersection_exist": number == 0,
                    }
                )
    if repeat:
        rows.append(
            {**rows[0], "instruction": "The later edit.", "input_image": {"bytes": png((30, 20), 9), "path": None}}
        )
    table = pyarrow.Table.from_pylist(rows)
    if arrow:
        with ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(table)
    else:
        parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    return [f"fullset/{group}/en/k{number}" for group in groups for number in range(2)]


def png(size: tuple[int, int], shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (20 * shade, 90, 10)).save(file, "PNG")
    return file.getvalue()


WISE_SCRIPT = """
def build_evaluation_messages(prompt_data, image_base64):
    return [
        {"role": "system", "content": [{"type": "text", "text": "Be strict."}]},
        {"role": "user", "content": [{"type": "text", "text": f"Is it {prompt_data['Prompt']}? {prompt_data['Explanation']}"}]},
    ]
"""
# One prompt of each category of the verified edition.
WISE_IDS = {"cultural_common_sense": (1,), "spatio-temporal_reasoning": (401, 521), "natural_science": (641, 761, 881)}


def wise(folder: Path) -> list[str]:
    """Write a folder like the verified edition of WISE. Returns the names of the results."""
    (folder / "data_verified").mkdir(parents=True)
    (folder / "vllm_eval.py").write_text(WISE_SCRIPT)
    for topic, ids in WISE_IDS.items():
        records = [
            {
                "Prompt": f"thing {number}",
                "Explanation": f"why {number}",
                "Category": "c",
                "Subcategory": "s",
                "prompt_id": number,
            }
            for number in ids
        ]
        (folder / "data_verified" / f"{topic}_verified.json").write_text(json.dumps(records))
    return [str(number) for ids in WISE_IDS.values() for number in ids]


GENEVAL = (
    {"tag": "single_object", "include": [{"class": "thing 1", "count": 1}], "prompt": "a thing 1"},
    {
        "tag": "colors",
        "include": [{"class": "thing 2", "count": 1, "color": "red"}],
        "prompt": "a red thing 2",
    },
    {
        "tag": "position",
        "include": [
            {"class": "thing 1", "count": 1},
            {"class": "thing 2", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a thing 2 left of a thing 1",
    },
)


def geneval(folder: Path) -> list[str]:
    """Write a folder with GenEval's files. Returns the names of the results."""
    folder.mkdir(parents=True)
    (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in GENEVAL))
    (folder / "object_names.txt").write_text("".join(f"thing {number}\n" for number in range(80)))
    return [f"{number:05d}/samples/{sample:05d}" for number in range(len(GENEVAL)) for sample in range(4)]


UNISANDBOX_SCRIPTS = {
    "math": ("CAPTION_PROMPT", "EVALUATION_PROMPT_TEMPLATE", "caption", "expected_answer"),
    "mapping": ("IDENTIFICATION_PROMPT", "EVALUATION_PROMPT_TEMPLATE", "identified_object", "expected_answer"),
    "knowledge": ("CAPTION_PROMPT", "EVAL_PROMPT_TEMPLATE", "caption", "gt"),
}
UNISANDBOX = {
    "test_reasoning/math_1": [{"id": 1, "Question": "1 + 1 apples", "Answer": "2 apples"}],
    "test_reasoning/mapping1": [
        {"ID": "1", "Question_A": "A is a cup.", "Answer": "Cups"},
        {"ID": "1", "Question_B": "B is a hat.", "Answer": "Hats"},
    ],
    "test_knowledge/Someone": [{"ID": 7, "Question": "Draw Someone.", "Answer": "a rose"}],
}


def unisandbox(folder: Path) -> None:
    """Write a folder like UniSandbox's."""
    for test, (first, second, description, answer) in UNISANDBOX_SCRIPTS.items():
        path = folder / "eval" / f"eval_{test}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        template = f"Shown: {{{description}}}. Expected: {{{answer}}}."
        path.write_text(f'{first} = "Describe for {test}."\n{second} = ("{template}")\nraise SystemExit("executed")\n')
    for name, records in UNISANDBOX.items():
        path = folder / "benchmark" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in records))
