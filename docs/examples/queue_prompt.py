"""Queue the edit workflow on a running `uniworld serve` and download the image, with only the standard library.

python docs/examples/queue_prompt.py PROMPT RESULT [URL]
"""

from __future__ import annotations

import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

WORKFLOW = Path(__file__).parents[2] / "workflows" / "api" / "edit.json"


def ask(url: str, data: Any = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def main(prompt: str, result: str, url: str = "http://127.0.0.1:8188") -> None:
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    condition = next(node for node in graph.values() if node["class_type"] == "UniWorldCondition")
    condition["inputs"]["prompt"] = prompt
    prompt_id = ask(f"{url}/prompt", {"prompt": graph})["prompt_id"]
    while not (done := ask(f"{url}/history/{prompt_id}")):
        time.sleep(0.2)
    if done[prompt_id]["status"]["status_str"] != "success":
        sys.exit(f"The prompt failed: {done[prompt_id]['status']}")
    outputs = done[prompt_id]["outputs"].values()
    saved = next(image for output in outputs for image in output.get("images", []) if image["type"] == "output")
    with urllib.request.urlopen(f"{url}/view?{urllib.parse.urlencode(saved)}") as reply:
        Path(result).write_bytes(reply.read())
    print("Saved", result)


if __name__ == "__main__":
    main(*sys.argv[1:])
