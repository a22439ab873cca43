"""What commands and options are called in Ollama, llama.cpp, mlx-lm and vLLM, and what does the same here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
_ANSWER_LENGTH, _PRECISION = ("--max-new-tokens",), ("--precision",)
_MODEL = ("MODEL", "[MODEL]...", "SOURCE", "PACKAGE")
# An option of theirs -> options and arguments of ours that do it; the first one that the command has is named.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "--adapter-path": ("--adapter", "ADAPTER"),
    "--cache-type-k": ("--kv-cache",),
    "--device": ("--provider",),
    "--draft-model": ("--speculation",),
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
    "-ctk": ("--kv-cache",),
    "-m": _MODEL,
    "-md": ("--speculation",),
    "-n": _ANSWER_LENGTH,
    "-ngl": ("--provider",),
    "-np": ("--batch",),
    "-p": ("PROMPT", "--port"),
    "-q": _PRECISION,
    "-sys": ("--system",),
    "-t": ("--threads",),
}


def in_our_words(error: click.NoSuchOption, words: Sequence[str]) -> click.NoSuchOption:
    """Say what the command, with these words behind it, calls an option that others have; else return the error."""
    params = error.ctx.command.params if error.ctx is not None else []
    options = {name for param in params if isinstance(param, click.Option) for name in param.opts}
    arguments = {param.human_readable_name for param in params if isinstance(param, click.Argument)}
    written = _as_written(error.option_name, words)
    for name in OPTIONS.get(written, ()):
        if name in options | arguments:
            way = f"Here it is {name}." if name in options else f"{name} is an argument, without a name before it."
            return click.NoSuchOption(written, f"No such option {written!r}. {way}", ctx=error.ctx)
    return error


def _as_written(option: str, words: Sequence[str]) -> str:
    """Return the word that an option is of: click takes llama.cpp's `-ngl` for three options of one letter."""
    if option.startswith("--") or option in words:
        return option
    clusters = (word.partition("=")[0] for word in words if word.startswith("-") and not word.startswith("--"))
    return next((word for word in clusters if option[1] in word), option)
