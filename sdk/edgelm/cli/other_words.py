"""What commands and options are called in other programs of this kind, and what does the same here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

_TOKEN = "the variable HF_TOKEN, which `edgelm pull` and `edgelm push` read"
_UNLOADED = "Ctrl-C in `edgelm serve`, which unloads models that nobody uses by itself"
# A command of theirs -> what to do here.
COMMANDS: Mapping[str, str] = {
    "awq": "`edgelm export --calibrate`",
    "benchmark": "`edgelm bench`",
    "builder": "`edgelm export`",
    "cache_prompt": "`edgelm chat --keep-cache`",
    "convert": "`edgelm export`",
    "convert_to_litgpt": "`edgelm import`",
    "copy": "`edgelm alias`",
    "cp": "`edgelm alias`",
    "create": "`edgelm export`",
    "delete": "`edgelm rm`",
    "download": "`edgelm pull`",
    "dpo": "`edgelm finetune --method dpo`",
    "dynamic_quant": "`edgelm export --precision mixed`",
    "evaluate": "`edgelm eval`",
    "finetune_full": "`edgelm finetune --method sft`",
    "finetune_lora": "`edgelm finetune`",
    "fuse": "`edgelm merge`",
    "generate": "`edgelm run`",
    "get": "`edgelm pull`",
    "gptq": "`edgelm export --calibrate`",
    "help": "`edgelm --help`",
    "imatrix": "`edgelm export --calibrate`",
    "info": "`edgelm show`",
    "launch": "the program itself, which asks `edgelm serve`",
    "load": "the first request to `edgelm serve`, which loads a model",
    "login": _TOKEN,
    "lora": "`edgelm finetune`",
    "ls": "`edgelm list`",
    "manage": "`edgelm list` and `edgelm rm`",
    "merge_lora": "`edgelm merge`",
    "models": "`edgelm list`",
    "perplexity": "`edgelm eval`",
    "pretrain": "`edgelm train`",
    "ps": "`curl http://127.0.0.1:8080/api/ps`, which asks `edgelm serve`",
    "remove": "`edgelm rm`",
    "rename": "`edgelm alias`",
    "search": "`edgelm list --available`",
    "server": "`edgelm serve`",
    "sft": "`edgelm finetune --method sft`",
    "signin": _TOKEN,
    "stop": _UNLOADED,
    "tokenize": "model.tokenizer.encode(text) in Python, or POST /tokenize, which asks `edgelm serve`",
    "unload": _UNLOADED,
    "upload": "`edgelm push`",
    "version": "`edgelm --version`",
}
_ANSWER_LENGTH, _PRECISION = ("--max-new-tokens",), ("--precision",)
_MODEL = ("MODEL", "[MODEL]...", "SOURCE", "PACKAGE")
_SETTINGS = ("TOML", "[MODEL|TOML]", "[STUDENT|TOML]")
# An option of theirs, with - for _ and without litgpt's "train." -> options and arguments of ours that do it; the first
# one that the command has is named.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "--adam-beta1": ("--beta1",),
    "--adam-beta2": ("--beta2",),
    "--adapter-path": ("--adapter", "ADAPTER"),
    "--allowed-origins": ("--cors-origin",),
    "--base-model": ("--init", "--model", *_MODEL),
    "--batch-size": ("--micro-batch-size",),
    "--beta": ("--dpo-beta",),
    "--bf16": _PRECISION,
    "--block-size": ("--sequence-length", "--recipe"),
    "--cache-type-k": ("--kv-cache",),
    "--checkpoint-dir": _MODEL,
    "--config": _SETTINGS,
    "--context-length": ("--sequence-length",),
    "--ctx-size": ("--window",),
    "--cutoff-len": ("--sequence-length",),
    "--data-path": ("--data",),
    "--dataset": ("--data",),
    "--dataset-name": ("--data",),
    "--deepspeed": ("--parallel",),
    "--depth": ("--params",),
    "--device": ("--provider",),
    "--device-batch-size": ("--micro-batch-size",),
    "--draft-model": ("--speculation",),
    "--dtype": _PRECISION,
    "--epochs": ("--max-steps",),
    "--eval-interval": ("--eval-every",),
    "--eval-iters": ("--eval-rows",),
    "--eval-steps": ("--eval-every",),
    "--execution-provider": ("--provider",),
    "--file": ("--data",),
    "--fine-tune-type": ("--method",),
    "--format": ("--json-schema",),
    "--fp16": _PRECISION,
    "--fsdp": ("--parallel",),
    "--gpu-layers": ("--provider",),
    "--grad-accumulation-steps": ("--grad-accum-steps",),
    "--grad-checkpoint": ("--activation-checkpointing",),
    "--gradient-accumulation-steps": ("--grad-accum-steps",),
    "--gradient-checkpointing": ("--activation-checkpointing",),
    "--grammar-file": ("--grammar",),
    "--hf-path": _MODEL,
    "--ignore-chat-template": ("--raw",),
    "--init-from": ("--init",),
    "--initial-checkpoint-dir": ("--init",),
    "--input": _MODEL,
    "--iters": ("--max-steps",),
    "--json-schema-file": ("--json-schema",),
    "--keepalive": ("--keep-alive",),
    "--load-in-4bit": ("--method",),
    "--log-interval": ("--log-every",),
    "--logging-steps": ("--log-every",),
    "--lora": ("--adapter",),
    "--lora-alpha": ("--alpha",),
    "--lora-dropout": ("--dropout",),
    "--lora-r": ("--rank",),
    "--lora-rank": ("--rank",),
    "--lora-scaled": ("--adapter",),
    "--lora-target-modules": ("--target-modules",),
    "--lr": ("--learning-rate",),
    "--lr-scheduler": ("--schedule",),
    "--lr-scheduler-type": ("--schedule",),
    "--lr-warmup-steps": ("--warmup-steps",),
    "--max-grad-norm": ("--grad-clip",),
    "--max-iters": ("--max-steps",),
    "--max-length": ("--sequence-length", "--max-new-tokens"),
    "--max-norm": ("--grad-clip",),
    "--max-num-seqs": ("--batch",),
    "--max-seq-len": ("--sequence-length",),
    "--max-seq-length": ("--sequence-length",),
    "--max-tokens": _ANSWER_LENGTH,
    "--min-lr": ("--min-learning-rate-ratio",),
    "--mlx-path": ("--output",),
    "--model": _MODEL,
    "--model-draft": ("--speculation",),
    "--model-name": ("--init", "--model", *_MODEL),
    "--model-name-or-path": ("--init", "--model", *_MODEL),
    "--n-gpu-layers": ("--provider",),
    "--n-predict": _ANSWER_LENGTH,
    "--num-epochs": ("--epochs", "--max-steps"),
    "--num-iterations": ("--max-steps",),
    "--num-predict": _ANSWER_LENGTH,
    "--num-train-epochs": ("--epochs", "--max-steps"),
    "--num-trials": ("--rounds",),
    "--optim": ("--optimizer",),
    "--origins": ("--cors-origin",),
    "--out": ("--output",),
    "--out-dir": ("--output",),
    "--outfile": ("--output",),
    "--output-dir": ("--output",),
    "--outtype": _PRECISION,
    "--parallel": ("--batch",),
    "--per-device-train-batch-size": ("--micro-batch-size",),
    "--ppl-stride": ("--stride",),
    "--predict": _ANSWER_LENGTH,
    "--prompt": ("PROMPT",),
    "--prompt-cache": ("--keep-cache",),
    "--q-bits": _PRECISION,
    "--q-group-size": ("--recipe",),
    "--quantization": _PRECISION,
    "--quantize": _PRECISION,
    "--repeat-penalty": ("--repetition-penalty",),
    "--repetitions": ("--rounds",),
    "--report-to": ("--tensorboard",),
    "--resume-adapter-file": ("--resume",),
    "--resume-from-checkpoint": ("--resume",),
    "--reverse-prompt": ("--stop",),
    "--save-interval": ("--save-every",),
    "--save-path": ("--output",),
    "--save-steps": ("--save-every",),
    "--save-total-limit": ("--keep-last",),
    "--seq-len": ("--sequence-length",),
    "--seq-length": ("--sequence-length",),
    "--sequence-len": ("--sequence-length",),
    "--session": ("--keep-cache",),
    "--steps-per-eval": ("--eval-every",),
    "--steps-per-report": ("--log-every",),
    "--strategy": ("--parallel",),
    "--system-prompt": ("--system",),
    "--temp": ("--temperature",),
    "--tensor-type": ("--recipe",),
    "--threads-batch": ("--threads",),
    "--token-embedding-type": ("--recipe",),
    "--torch-compile": ("--compile",),
    "--total-batch-size": ("--global-batch-size",),
    "--train-file": ("--data",),
    "--use-peft": ("--method",),
    "--val-batches": ("--eval-rows",),
    "--val-set-size": ("--validation-fraction",),
    "--val-split-fraction": ("--validation-fraction",),
    "--validation-file": ("--validation-data",),
    "--verbose": ("--stats",),
    "--wandb": ("--tensorboard",),
    "--wandb-log": ("--tensorboard",),
    "--wandb-project": ("--tensorboard",),
    "--warmup-iters": ("--warmup-steps",),
    "--warmup-ratio": ("--warmup-steps",),
    "--weight-format": _PRECISION,
    "-c": (*_SETTINGS, "--window"),
    "-ctk": ("--kv-cache",),
    "-f": ("--data",),
    "-j": ("--json-schema",),
    "-jf": ("--json-schema",),
    "-m": _MODEL,
    "-md": ("--speculation",),
    "-n": _ANSWER_LENGTH,
    "-ngl": ("--provider",),
    "-no-cnv": ("--raw",),
    "-np": ("--batch",),
    "-p": ("PROMPT", "--port"),
    "-q": _PRECISION,
    "-r": ("--stop", "--rounds"),
    "-s": ("--seed",),
    "-sys": ("--system",),
    "-t": ("--threads",),
    "-tb": ("--threads",),
}
_ALWAYS = "Leave it out: it is always so."
_NOTHING = "Leave it out: there is nothing to set."
_CONTEXT = "Leave it out: the context is the model's, and memory grows with what is used of it."
_TEMPLATE = "The template is the package's: change chat_template.jinja in its checkpoint folder, and export that."
_CHAT = "`edgelm chat` is the conversation."
_KEPT = "`edgelm chat --keep-cache` keeps what was computed."
_REQUEST = "A request to `edgelm serve` says it, or edgelm.GenerationConfig in a program."
_HUB = "From the hub: `edgelm pull hf:ORG/REPO/FILE.gguf`; from then on it goes by its name."
_CACHE = "A package says how they are kept: `edgelm export --kv-cache int8`."
_TASKS = "lm-eval has the tasks, and asks `edgelm serve`."
ANSWERING = ("run", "chat", "serve")
# An option of theirs, for which ANSWERING have none of those above -> what to do.
OF_ANSWERS: Mapping[str, str] = {
    **dict.fromkeys(("--cont-batching", "-cb", "--jinja", "--metrics", "--embedding", "--embeddings"), _ALWAYS),
    **dict.fromkeys(("--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser"), _ALWAYS),
    **dict.fromkeys(("--enable-prefix-caching", "--hidethinking", "--no-display-prompt", "-st"), _ALWAYS),
    **dict.fromkeys(("--mlock", "--no-mmap", "--numa", "--batch-size", "-b", "--ubatch-size", "-ub"), _NOTHING),
    **dict.fromkeys(("--flash-attn", "-fa", "--gpu-memory-utilization"), _NOTHING),
    **dict.fromkeys(("--ctx-size", "-c", "--max-model-len", "--max-kv-size"), _CONTEXT),
    **dict.fromkeys(("--chat-template", "--chat-template-file"), _TEMPLATE),
    **dict.fromkeys(("--conversation", "-cnv", "--interactive", "-i"), _CHAT),
    **dict.fromkeys(("--prompt-cache", "--prompt-cache-file", "--session"), _KEPT),
    **dict.fromkeys(("--temp", "--temperature", "--top-k", "--top-p", "--min-p", "--seed", "-s"), _REQUEST),
    **dict.fromkeys(("--max-tokens", "--n-predict", "--predict", "-n", "--repeat-penalty"), _REQUEST),
    **dict.fromkeys(("--ignore-eos", "--logit-bias", "--mirostat", "--typical", "--typical-p"), _REQUEST),
    **dict.fromkeys(("--xtc-probability", "--xtc-threshold", "--dry-multiplier"), _REQUEST),
    **dict.fromkeys(("--alias", "-a", "--served-model-name"), "`edgelm alias NEW NAME` gives a model another name."),
    **dict.fromkeys(("--rerank", "--reranking"), "No model here ranks texts."),
    **dict.fromkeys(("--ssl-key-file", "--ssl-cert-file"), "A proxy before the server has TLS."),
    **dict.fromkeys(("--image", "--mmproj"), "Models read text here."),
    **dict.fromkeys(("--file", "-f"), "Standard input is read: `edgelm run MODEL < FILE`."),
    "--models-dir": "The variable EDGELM_HOME names it.",
    "--pooling": "A request to /v1/embeddings says it.",
}
# An option of theirs, for which no command has one -> what to do.
OF_ALL: Mapping[str, str] = {
    **dict.fromkeys(("--hf-repo", "-hf", "-hfr", "--hf-file", "-hff", "--include"), _HUB),
    **dict.fromkeys(("--tasks", "--num-shots", "--num_fewshot", "--hellaswag", "--winogrande"), _TASKS),
    **dict.fromkeys(("--cache-type-k", "--cache-type-v", "--kv-bits", "-ctk", "-ctv"), _CACHE),
    **dict.fromkeys(("--modelfile", "--parameters", "--template"), "It is in the files of the package's folder."),
    **dict.fromkeys(("--opset", "--task"), _NOTHING),
    **dict.fromkeys(("--n_embd", "--n_head", "--n_layer"), "`edgelm train --model` sets a field of the model's shape."),
    "--imatrix": "Weigh by the text that it was made of: `edgelm export --calibration TEXT`.",
    "--kl-divergence": "`edgelm compare` has it.",
    "--revision": "Write it behind the model: `edgelm pull hf:ORG/REPO@REVISION`.",
    "--trust-remote-code": "Leave it out: no code of a model is run.",
    "--upload-repo": "`edgelm push` uploads.",
}


def in_our_words(error: click.NoSuchOption, words: Sequence[str]) -> click.NoSuchOption:
    """Say what the command, with these words behind it, calls an option that others have; else return the error."""
    command = error.ctx.command if error.ctx is not None else None
    params = command.params if command is not None else []
    options = {name for param in params if isinstance(param, click.Option) for name in param.opts}
    arguments = {param.human_readable_name for param in params if isinstance(param, click.Argument)}
    written = _as_written(error.option_name, words)
    ways = {**OF_ANSWERS, **OF_ALL} if command is not None and command.name in ANSWERING else OF_ALL
    way = ways.get(written)
    plain = written.replace("--train.", "--").replace("_", "-")
    for name in OPTIONS.get(plain, (plain,)):
        if name in options | arguments:
            way = f"Here it is {name}." if name in options else f"{name} is an argument, without a name before it."
            break
    if way is None and arguments and _is_text(written):
        way = "A text that begins with - stands last, behind --."
    return error if way is None else click.NoSuchOption(written, f"No such option {written!r}. {way}", ctx=error.ctx)


def with_its_other_way(error: click.BadOptionUsage, command: click.Command | None) -> click.BadOptionUsage:
    """Name the other way of a switch that was given a value, such as Ollama's --think=false; else return the error."""
    params = command.params if command is not None else []
    switches = (param for param in params if isinstance(param, click.Option) and error.option_name in param.opts)
    other = next((name for switch in switches for name in switch.secondary_opts), None)
    return (
        error if other is None else click.BadOptionUsage(error.option_name, f"{error.message} Its opposite is {other}.")
    )


def _as_written(option: str, words: Sequence[str]) -> str:
    """Return the word that an option is of: click takes llama.cpp's `-ngl` for three options of one letter."""
    if option.startswith("--") or option in words:
        return option
    clusters = (word.partition("=")[0] for word in words if word.startswith("-") and not word.startswith("--"))
    return next((word for word in clusters if option[1] in word), option)


def _is_text(option: str) -> bool:
    """Say whether what click took for an option is a text of the user's, such as "- milk" or "-5 degrees"."""
    return " " in option or not option.lstrip("-")[:1].isalpha()
