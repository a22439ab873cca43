"""lm-eval's local-completions on a small task of its own, without a network: a choice and a continuation."""

import json
import os
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

folder = Path("tasks")
folder.mkdir()
rows = [
    {"question": "The capital of France is", "choices": [" Paris", " Zebra"], "answer": 0},
    {"question": "Two plus two is", "choices": [" purple", " four"], "answer": 1},
    {"question": "The sun rises in the", "choices": [" east", " refrigerator"], "answer": 0},
]
(folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder.absolute()}/rows.json}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
(folder / "choice.yaml").write_text(
    f"task: choice{common}output_type: multiple_choice\ndoc_to_choice: choices\n"
    "doc_to_target: answer\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n"
)
(folder / "continuation.yaml").write_text(
    f"task: continuation{common}output_type: generate_until\ndoc_to_target: '{{{{choices[answer]}}}}'\n"
    "generation_kwargs: {until: ['\\n'], max_gen_toks: 5, temperature: 0}\nmetric_list: [{metric: exact_match}]\n"
)
results = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": os.environ["MODEL"],
        "base_url": f"{os.environ['OPENAI_BASE_URL']}/completions",
        "tokenizer_backend": "remote",
        "num_concurrent": 1,
        "batch_size": 2,
        "max_retries": 1,
        "auth_token": os.environ["OPENAI_API_KEY"],
    },
    tasks=["choice", "continuation"],
    task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    bootstrap_iters=0,
)
print(
    json.dumps(
        {"acc": results["results"]["choice"]["acc,none"], "n": results["n-samples"]["continuation"]["effective"]}
    )
)
