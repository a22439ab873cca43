"""Answer many prompts on many machines with Ray Data: python examples/ray_data_batches.py [MODEL] [PROMPTS.txt]"""

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports usage unless told not to, before its import
import ray

import edgelm

arguments = dict(enumerate(sys.argv))
MODEL = arguments.get(1, "smollm2-135m-instruct")


class Answers:
    """One loaded model in each worker process."""

    def __init__(self) -> None:
        self.model = edgelm.load(MODEL)
        self.config = edgelm.GenerationConfig(max_new_tokens=32)

    def __call__(self, batch: dict) -> dict:
        done = self.model.generate_batch(list(batch["prompt"]), self.config)
        return {"prompt": batch["prompt"], "answer": [completion.text for completion in done]}


if 2 in arguments:
    prompts = ray.data.read_text(arguments[2]).rename_columns({"text": "prompt"})
else:
    prompts = ray.data.from_items([{"prompt": f"The number {number} is"} for number in range(16)])

# One worker here; on a cluster, as many as there are machines.
answers = prompts.map_batches(Answers, batch_size=8, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1)
for row in answers.iter_rows():
    print(row["prompt"], "→", row["answer"])
