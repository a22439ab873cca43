"""What a GGUF file says of its tokens: which begin a text, which end an answer."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.gguf.file import GGUFStrings
from edgelm_export.tokenizers.sentencepiece_model import PieceType

# End of text, of a turn, and of a message that calls a tool: llama.cpp ends a generation at each.
_END_TOKENS = ("eos", "eot", "eom")
# The tokens that it knows for such ends by their names alone: many files have no key for the end of a turn.
_END_NAMES = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    }
)  # fmt: skip
# A name -> those beside which it is no end: GPT-OSS ends a part of its answer so.
_NO_END_BESIDE = {"<|end|>": ({"<|return|>", "<|call|>"}, {"<|flush|>", "<|calls|>"})}
_TAG = "</s>"


def token_id_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Make the token ids of the tokenizer's metadata; ends are a list where a turn has one of its own.

    Ends are those of llama.cpp, but for its tokens around parts of files, and a tag of HTML:
    https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp, `special_eog_ids`.
    """
    named, none = named_ends(metadata)
    ends = [_token_id(metadata, name) for name in _END_TOKENS]
    ends = [id_ for id_ in dict.fromkeys([*ends, *named]) if id_ is not None and id_ not in none]
    return {
        "bos_token_id": _token_id(metadata, "bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": _token_id(metadata, "padding"),
    }


def _token_id(metadata: Mapping[str, Any], role: str) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    value = metadata.get(key)
    if not isinstance(value, int | None) or isinstance(value, bool):
        shown = value.tolist() if isinstance(value, array) else value
        raise CheckpointError(f"GGUF metadata: {key} is {str(shown)[:100]}; it must be the id of one token.")
    return value


def named_ends(metadata: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids of tokens that end an answer by their names, and of those that do not, beside these."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, (GGUFStrings, list)):
        return [], []
    ids = {token: id_ for id_, token in enumerate(tokens) if isinstance(token, str) and token in _END_NAMES}
    none = [name for name, others in _NO_END_BESIDE.items() if any(ids.keys() >= each for each in others)]
    named = [id_ for name, id_ in ids.items() if name not in none and not _is_tag(metadata, name, id_)]
    return named, [ids[name] for name in none if name in ids]


def _is_tag(metadata: Mapping[str, Any], name: str, id_: int) -> bool:
    """Tell whether a token is the tag of HTML, which is a text in the vocabularies of Qwen and Gemma."""
    types = metadata.get("tokenizer.ggml.token_type")
    if name != _TAG or not isinstance(types, (list, array)) or PieceType.CONTROL in types[id_ : id_ + 1]:
        return False
    return id_ not in [metadata.get(f"tokenizer.ggml.{end}_token_id") for end in _END_TOKENS]
