"""Teach a model your own answers, and chat with it: fine-tune, merge, export, load.

edgelm import smollm2-135m-instruct -o ckpt/ && python examples/finetune_to_laptop.py ckpt/
"""

import json
import sys
from pathlib import Path

import edgelm
from edgelm_export.exporter import export_package
from edgelm_export.sources.sources import open_checkpoint
from edgelm_training.finetune import finetune
from edgelm_training.merge import merge_adapter

ANSWERS = {
    "When does the library open?": "At nine, and on Sundays at noon.",
    "How long may I keep a book?": "Four weeks; you can renew it once.",
    "What does a library card cost?": "Nothing.",
}
base, work = sys.argv[1], Path("my-model")
work.mkdir(exist_ok=True)
chats = work / "chats.jsonl"
chats.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in ANSWERS.items()))

# An adapter learns beside the frozen model. Run the program again, and a run that was stopped goes on.
settings = {"model": base, "data": (str(chats),), "output": str(work / "run"), "learning_rate": 1e-3}
finetune(settings | {"max_steps": 20, "validation_fraction": 0.0}, resume=True)
merge_adapter(work / "run", work / "merged")
with open_checkpoint(work / "merged") as checkpoint:
    export_package(checkpoint, work / "package", "int8", name="my-model")

model = edgelm.load(work / "package")
config = edgelm.GenerationConfig(max_new_tokens=32, temperature=0.0)
for question in ANSWERS:
    print(f"> {question}\n{model.chat([{'role': 'user', 'content': question}], config).text}")
