"""The fields of a request that choose tokens: OpenAI's, and those that local servers add to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgelm.generation_config import OF_CHANCE, RANGES, WHOLE, GenerationConfig
from edgelm.memory.kv_batch import longest_row
from edgelm.server.api_error import ApiError
from edgelm.server.schema import BOOLEAN, Schema, listing, number, whole

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

MAX_CHOICES = 8
MAX_STOPS = 16
_STOP: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
_MAX_BIASES = 4096
_BAN = -1e9  # as of what a model's author suppresses
STOPS: Schema = listing(_STOP, most=MAX_STOPS)

# LM Studio and llama.cpp write -1 for as many as fit.
MAX_TOKENS: Schema = {"anyOf": [whole(1), {"type": "integer", "enum": [-1]}]}
_AS_OURS = (
    "top_p", "min_p", "top_n_sigma", "mirostat_tau", "mirostat_eta", "xtc_probability", "xtc_threshold",
    "dry_multiplier", "dry_base", "dry_allowed_length", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "context_shift",
)  # fmt: skip
SAMPLING: dict[str, Schema] = {
    **{name: whole(*map(int, RANGES[name])) if name in WHOLE else number(*RANGES[name]) for name in _AS_OURS},
    "temperature": number(0, 2),
    "top_k": whole(-1),
    "typical_p": number(0.001, 1),
    "logit_bias": {
        "anyOf": [
            {
                "type": "object",
                "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                "additionalProperties": number(-100, 100),
            },
            # llama.cpp's form, [id, bias]; false bans the token.
            listing(listing({"anyOf": [number(-100, 2**31), BOOLEAN]}, fewest=2, most=2), most=_MAX_BIASES),
        ]
    },
    "seed": whole(-(2**63), 2**63 - 1),
    "stop": {"anyOf": [_STOP, STOPS]},
    "ignore_eos": BOOLEAN,
    "min_tokens": whole(*map(int, RANGES["min_new_tokens"])),  # vLLM's name, as max_tokens is OpenAI's
    "repeat_penalty": number(*RANGES["repetition_penalty"]),  # llama.cpp's and Ollama's name
}

# Of the program that runs a model: Ollama's options, which Open WebUI sends to other servers too.
RUNNER = (
    "num_batch", "num_ctx", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa", "low_vram",
    "repeat_last_n",  # penalties see the whole text, but with 0, which turns repeat_penalty off
)  # fmt: skip

# Fields that name or file a request, or say where and how long another server keeps what it computed: they change
# nothing in an answer.
HARMLESS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    *("cache_prompt", "id_slot", "return_progress", "timings_per_token"),  # llama.cpp's
    # vLLM's. The next but last says how special tokens are written, which no answer has.
    *("cache_salt", "priority", "request_id", "spaces_between_special_tokens", "guided_decoding_backend"),
    "stream_reasoning",  # SGLang's
    *("ttl", "keep_alive"),  # LM Studio's and Ollama's
    *RUNNER,
)

# Fields of other servers, or of OpenAI's, that would change the answer.
REFUSED: Mapping[str, str] = {
    "best_of": "ask for n answers, and choose.",
    "mirostat": "mirostat_tau turns Mirostat 2.0 on.",
    "tfs_z": "use temperature, top_p or min_p.",
    "top_a": "use min_p.",
    "dry_sequence_breakers": "they are a newline, a colon, a quotation mark and a star.",
    **dict.fromkeys(("n_predict", "num_predict"), "use max_tokens."),
    **dict.fromkeys(("n_keep", "num_keep"), "use context_shift."),
    "options": "/api/chat and /api/generate have them.",
    **dict.fromkeys(("adapters", "lora"), "an adapter is a model of its own: name it as model."),
    "dynatemp_range": "use temperature.",
    "n_probs": "use logprobs.",
    "reasoning_format": "what was thought comes apart, by itself.",
    "samplers": "the order of the filters is fixed; a filter without a field is off.",
    # vLLM's, and SGLang's.
    "allowed_token_ids": "use a form of the answer.",
    "bad_words": "use logit_bias.",
    **dict.fromkeys(("early_stopping", "length_penalty", "use_beam_search"), "edgelm run --num-beams has it."),
    **dict.fromkeys(("include_stop_str_in_output", "no_stop_trim"), "what ends an answer is no part of it."),
    **dict.fromkeys(("return_token_ids", "return_tokens_as_token_ids"), "/tokenize has them."),
    "separate_reasoning": "what was thought comes apart, by itself.",
    "skip_special_tokens": "special tokens are no part of an answer.",
    "stop_token_ids": "use stop.",
}


def generation_config(
    model: LanguageModel, body: Mapping[str, Any], *, max_tokens: int | None, **fields: Any
) -> GenerationConfig:
    """Return the settings of a request: its own, and for the rest those of the model's author.

    max_tokens: clamped to the context; -1: all of it. fields: further fields of GenerationConfig.

    Raises:
        ApiError: 400, a token of logit_bias is none of the model's.
    """
    changes = {name: body[name] for name in SAMPLING if name in body}
    if "top_p" in changes:
        changes["top_p"] = max(float(changes["top_p"]), 1e-9)  # OpenAI takes 0: the likeliest token alone
    if "top_k" in changes:
        changes["top_k"] = max(changes["top_k"], 0)  # vLLM and llama.cpp take -1 too: all tokens
    if "seed" in changes:
        changes["seed"] %= 2**63
    if changes.get("temperature") == 0:  # as llama.cpp: the likeliest token, whatever else a client has set for all
        changes = {name: value for name, value in changes.items() if name not in OF_CHANCE}
    if "min_tokens" in changes:
        changes["min_new_tokens"] = changes.pop("min_tokens")
    if "repeat_penalty" in changes:
        penalty = changes.pop("repeat_penalty")
        changes.setdefault("repetition_penalty", 1.0 if body.get("repeat_last_n") == 0 else penalty)  # it sees no token
    if body.get("mirostat") == 0:  # llama.cpp's and Ollama's switch, which stands beside a tau in what clients send
        changes["mirostat_tau"] = 0.0
    if "logit_bias" in changes:
        # Beside the tokens that the model's author bans, which a client that knows none of them does not mean.
        given = _logit_bias(changes["logit_bias"], model.config.vocab_size)
        changes["logit_bias"] = {**model.generation_config.logit_bias, **given}
    if max_tokens is not None:
        most = longest_row(model.config)
        changes["max_new_tokens"] = most if max_tokens == -1 else min(max_tokens, most)
    return model.generation_config.replace(**changes, **fields)


def with_seed(config: GenerationConfig, index: int) -> GenerationConfig:
    """Return the settings of the answer `index` of several to one prompt: with a seed given, each has its own."""
    return config if config.seed is None or not index else config.replace(seed=(config.seed + index) % 2**63)


def _logit_bias(given: Mapping[str, float | None] | Sequence[Sequence[float]], vocab_size: int) -> dict[int, float]:
    biases: dict[int, float] = {}
    pairs = given.items() if isinstance(given, Mapping) else [(str(id_), bias) for id_, bias in given]
    for key, bias in pairs:
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise ApiError(
                400, f"logit_bias has the key {key[:40]!r}; token ids are 0 to {vocab_size - 1}.", param="logit_bias"
            )
        if bias is None:  # not given, as any field that is null
            continue
        if bias is True or bias > 100:
            rule = "a bias is from -100 to 100, or false"
            raise ApiError(400, f"logit_bias has {bias!r} for the token {key}; {rule}.", param="logit_bias")
        biases[int(key)] = _BAN if bias is False else bias
    return biases
