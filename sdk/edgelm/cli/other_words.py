"""What commands and options are called in Ollama, llama.cpp, mlx-lm and vLLM, and what does the same here."""

from __future__ import annotations

from collections.abc import Mapping

import click

# A command of theirs -> what to do here.
COMMANDS: Mapping[str, str] = {
    "convert": "`edgelm export`",
    "copy": "`edgelm alias`",
    "cp": "`edgelm alias`",
    "create": "`edgelm export`",
    "delete": "`edgelm rm`",
    "download": "`edgelm pull`",
    "fuse": "`edgelm merge`",
    "generate": "`edgelm run`",
    "help": "`edgelm --help`",
    "info": "`edgelm show`",
    "lora": "`edgelm finetune`",
    "ls": "`edgelm list`",
    "models": "`edgelm list`",
    "perplexity": "`edgelm eval`",
    "ps": "`curl http://127.0.0.1:8080/api/ps`, which asks `edgelm serve`",
    "remove": "`edgelm rm`",
    "rename": "`edgelm alias`",
    "search": "`edgelm list --available`",
    "stop": "Ctrl-C in `edgelm serve`, which unloads models that nobody uses by itself",
    "version": "`edgelm --version`",
}
_ANSWER_LENGTH, _PRECISION, _MODEL = ("--max-new-tokens",), ("--precision",), ("MODEL", "SOURCE", "PACKAGE")
# An option of theirs -> those of ours that do it, or arguments; that which the command has is meant.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "--adapter-path": ("--adapter",),
    "--cache-type-k": ("--kv-cache",),
    "--dtype": _PRECISION,
    "--format": ("--json-schema",),
    "--gpu-layers": ("--provider",),
    "--hf-path": _MODEL,
    "--lora": ("--adapter",),
    "--max-num-seqs": ("--batch",),
    "--max-tokens": _ANSWER_LENGTH,
    "--model": _MODEL,
    "--model-draft": ("--speculation",),
    "--n-gpu-layers": ("--provider",),
    "--n-predict": _ANSWER_LENGTH,
    "--num-predict": _ANSWER_LENGTH,
    "--outfile": ("--output",),
    "--outtype": _PRECISION,
    "--parallel": ("--batch",),
    "--predict": _ANSWER_LENGTH,
    "--prompt": ("PROMPT",),
    "--quantization": _PRECISION,
    "--quantize": _PRECISION,
    "--repeat-penalty": ("--repetition-penalty",),
    "--temp": ("--temperature",),
    "--verbose": ("--stats",),
    "-m": _MODEL,
    "-n": _ANSWER_LENGTH,
    "-p": ("PROMPT", "--port"),
    "-q": _PRECISION,
    "-t": ("--threads",),
}


def in_our_words(error: click.NoSuchOption) -> click.NoSuchOption:
    """Say what the command calls an option that others have; any other error is returned as it is."""
    params = error.ctx.command.params if error.ctx is not None else []
    options = {name for param in params if isinstance(param, click.Option) for name in param.opts}
    arguments = {param.human_readable_name for param in params if isinstance(param, click.Argument)}
    for name in OPTIONS.get(error.option_name, ()):
        if name in options | arguments:
            way = f"Here it is {name}." if name in options else f"{name} is an argument, without a name before it."
            return click.NoSuchOption(error.option_name, f"No such option {error.option_name!r}. {way}", ctx=error.ctx)
    return error
