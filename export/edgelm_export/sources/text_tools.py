"""The text tools of a checkpoint: its tokenizer and chat template, opened as whoever loads a package opens them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgelm.errors import CheckpointError, EdgeLMError
from edgelm.generation_config import GenerationConfig
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.sources.checkpoint_folder import CHAT_TEMPLATE, GENERATION_CONFIG
from edgelm_export.tokenizers.tokenizer_json import TOKENIZER

_Opened = TypeVar("_Opened")


def text_tools(checkpoint: Checkpoint) -> tuple[Tokenizer, ChatTemplate | None]:
    """Return a checkpoint's tokenizer and chat template, once its generation_config.json is known to load too.

    What is broken shows here before the work, not after it.

    Raises:
        CheckpointError: one of them does not load; the message names the source's file.
    """
    with tempfile.TemporaryDirectory(prefix="edgelm-") as name:
        folder = Path(name)
        for file, text in checkpoint.text_files.items():
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
        load_settings = partial(GenerationConfig.load, decoder_prompt=len(checkpoint.config.decoder_prompt_ids))
        _opened(load_settings, folder, GENERATION_CONFIG, checkpoint.path)
        template = _opened(ChatTemplate.load, folder, CHAT_TEMPLATE, checkpoint.path)
        return _opened(Tokenizer.load, folder, TOKENIZER, checkpoint.path), template


def _opened(load: Callable[[Path], _Opened], folder: Path, file: str, source: Path) -> _Opened:
    try:
        return load(folder)
    except EdgeLMError as error:
        # A GGUF file has no such file, and what it has of it is inside; nor has a folder that keeps it in another.
        place = source / file if (source / file).exists() else source
        problem = str(error).replace(str(folder / file), str(place))
        problem = problem if str(place) in problem else f"{place}: {problem}"
        if source.is_file():
            problem = f"{problem.rstrip('.')}. Put a {file} that does into the folder that `edgelm import` makes of it."
        raise CheckpointError(f"The source's text files do not load: {problem}") from error
