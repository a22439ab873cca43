"""The tokenizer of a Hugging Face folder that has a SentencePiece model and no tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.sentencepiece_model import PieceType, SentencePieceModel, read_sentencepiece
from edgelm_export.tokenizers.sentencepiece_tokenizer import sentencepiece_json, token_names
from edgelm_export.tokenizers.tokenizer_json import added_token, files_of, listed_tokens, token_named

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
# Settings of the class that read the SentencePiece model, or code of the author's.
_OF_ANOTHER_CLASS = ("added_tokens_decoder", "auto_map", "legacy", "sp_model_kwargs", "use_default_system_prompt")
_WITH_TOKENS_IN_CODE = ("ChatGLMTokenizer",)  # of ChatGLM 2 and 3
# GPT-SW3's puts no token around a text. It leaves out marks that are not printed, makes a space of other spaces, and
# composes what is left, as for its training.
_SW3 = "GPTSw3Tokenizer"
_UNPRINTED = r"[\x{0}-\x{8}\x{b}-\x{1f}\x{7f}-\x{a0}\x{ad}\x{200b}]"
_SPACES = r"[\x{2002}\x{2003}\x{2005}\x{2008}-\x{200a}\x{202f}\x{3000}\x{fffc}]"
_SW3_STEPS: tuple[Mapping[str, Any], ...] = (
    {"type": "Replace", "pattern": {"Regex": _UNPRINTED}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": _SPACES}, "content": " "},
    {"type": "NFC"},
)


def sentencepiece_files(path: Path, config: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, str]:
    """Rebuild tokenizer.json and tokenizer_config.json: name -> content.

    config: the folder's tokenizer_config.json, which says what stands around a text and which tokens came after the
    model was trained; without it, a begin token stands before texts of a BPE and an end token behind those of a
    unigram, but for GPT-SW3's. added: its added_tokens.json, of older versions of transformers.

    Raises:
        CheckpointError: the model is broken or not supported, or a setting is.
    """
    if (name := config.get("tokenizer_class")) in _WITH_TOKENS_IN_CODE:
        raise CheckpointError(
            f"{path.parent} has no tokenizer.json, and the control tokens of a {name!r} are in its author's code, "
            "which is not run. Take a folder with tokenizer.json."
        )
    model = read_sentencepiece(path)
    roles = {role: token_named(config, f"{role}_token", model.roles.get(role)) for role in ("bos", "eos", "unk", "pad")}
    around = []
    for role, default in (("bos", model.kind == "bpe"), ("eos", model.kind == "unigram")):
        token = roles[role]
        wanted = config.get(f"add_{role}_token")
        if not isinstance(wanted, bool):
            wanted = default and token is not None and name != _SW3
        if wanted and token is None:
            raise CheckpointError(f"{path.parent}: add_{role}_token is set, but there is no {role}_token.")
        around.append([token] if wanted and token is not None else [])
    more = added_tokens(model, config, added, path)
    settings = {
        **{key: value for key, value in config.items() if key not in _OF_ANOTHER_CLASS},
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(around[0]),
        "add_eos_token": bool(around[1]),
        **{f"{role}_token": token for role, token in roles.items() if token is not None},
    }
    try:
        prepared = _SW3_STEPS if name == _SW3 else ()
        tokenizer = sentencepiece_json(model, before=around[0], after=around[1], more=more, prepared=prepared)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return files_of(tokenizer, settings)


def added_tokens(
    model: SentencePieceModel, config: Mapping[str, Any], added: Mapping[str, Any], path: Path
) -> list[dict[str, Any]]:
    """List the tokens that the folder adds to the model's, or treats otherwise.

    Raises:
        CheckpointError: one has no id or no content, or its id leaves a gap behind the vocabulary.
    """
    names, tokens = token_names(model), []
    for index, value in listed_tokens(config, added, path.parent):
        content, special = value["content"], value.get("special") is True
        of_model = index < len(names) and names[index] == content
        if of_model and not special and model.types[index] != PieceType.NORMAL:
            continue
        tokens.append(added_token(index, content, special=special, like=value))
    highest = max((token["id"] for token in tokens), default=0)
    if highest > len(model.texts) + len(tokens):
        raise CheckpointError(f"{path.parent}: the id {highest} of an added token leaves a gap behind the vocabulary.")
    return tokens
