"""LanguageModel: a package in memory: text in, text out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.arguments import as_list, as_path, as_token_ids, is_whole, of_class, or_default, reading
from edgelm.completion import Chunk, Completion, Message, Scores
from edgelm.config import ModelConfig
from edgelm.decoding.answer import Answer, join, taken
from edgelm.decoding.draft_length import StepCosts
from edgelm.decoding.draft_model import DraftModel
from edgelm.decoding.generate import Decoder
from edgelm.decoding.prompt_lookup import PromptLookup
from edgelm.decoding.scoring import score
from edgelm.decoding.speculation import Speculator
from edgelm.embedding import DEFAULT_POOLING, Pooling, embed
from edgelm.errors import ChatTemplateError, ConfigError, ContextLengthError, TokenizerError
from edgelm.generation_config import GenerationConfig
from edgelm.memory.huge_pages import in_huge_pages
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.malloc import Returned
from edgelm.memory.prefix_cache import DEFAULT_BYTES, PrefixCache
from edgelm.package.adapter import AdapterManifest, read_adapter
from edgelm.package.manifest import Manifest
from edgelm.package.signature import check_required_signature
from edgelm.runtime.switch_interval import SHORT_SWITCH_INTERVAL
from edgelm.structure.reasoning import Reasoning, reasoning_settings, take_in_turn
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.structure.tool_formats import tool_format
from edgelm.structure.tool_messages import show_tools
from edgelm.structure.tools import Tool, ToolChoice, listed_tools, tool_parameters, tool_settings
from edgelm.text.chat_encoding import encode_chat, words_to_continue
from edgelm.text.chat_template import WITHOUT_TEMPLATE, ChatTemplate
from edgelm.text.fill_in_middle import fill_in_ids
from edgelm.text.languages import Languages
from edgelm.text.tokenizer import Tokenizer


class LanguageModel(Returned):
    """A decoder session, a tokenizer and what belongs to them. Made by `edgelm.load`.

    Safe to use from several threads: each generation has a KV cache of its own. `prefixes` keeps what was computed, for
    prompts that begin the same way; put another PrefixCache in its place for another budget. `languages` are those that
    it translates between.
    """

    def __init__(
        self,
        *,
        session: Decoder,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        generation_config: GenerationConfig,
        manifest: Manifest,
    ) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.languages = Languages(tokenizer, session.config)
        self.chat_template = chat_template
        self.generation_config = generation_config
        self.manifest = manifest
        # What a decoder computes hangs on the source text that its encoder has read.
        self.prefixes = PrefixCache(session.config, DEFAULT_BYTES if session.config.encoder is None else 0)
        self.step_costs, self.row_costs = StepCosts(), StepCosts()  # of tokens in one call, and of as many rows

    @property
    def prefixes(self) -> PrefixCache:
        """What keeps the keys and values that were computed.

        Raises:
            ConfigError: something else is put in its place.
        """
        return self._prefixes

    @prefixes.setter
    def prefixes(self, prefixes: PrefixCache) -> None:
        how = "such as edgelm.PrefixCache(model.config, 0), which keeps nothing"
        self._prefixes = of_class("prefixes", prefixes, PrefixCache, how)

    def __repr__(self) -> str:
        kind = f"{self.manifest.architecture}, {self.manifest.precision}"
        return f"<LanguageModel {self.name!r}: {kind}, context of {self.context_length} tokens>"

    @property
    def config(self) -> ModelConfig:
        """The features of the Transformer."""
        return self.session.config

    @property
    def name(self) -> str:
        """The name that the package gives itself."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """Identify the package by what is in it: a SHA-256 of its files' names and hashes, in hexadecimal."""
        return self.manifest.fingerprint

    @property
    def context_length(self) -> int:
        """How many tokens prompt and answer may have together; with an encoder, the answer alone."""
        return self.config.max_position_embeddings

    @property
    def adapters(self) -> Mapping[str, AdapterManifest]:
        """The adapters that are loaded now, by name."""
        return self.session.adapters

    def load_adapter(self, folder: str | Path, name: str | None = None) -> None:
        """Load an adapter beside the model: answers take it where their GenerationConfig names it.

        folder: what `edgelm export-adapter` wrote. name: None is the one that the adapter gives itself. Without any
        adapter the model is the package alone, and with one, its weights are still there once
        (docs/guides/adapters.md says what an adapter costs). What is being computed ends its step before.

        Raises:
            ConfigError: an adapter of that name is loaded, the name is no text, or the model takes none.
            PackageError: the adapter belongs to another package, is broken or was changed, or is not signed where
                $EDGELM_REQUIRE_SIGNATURE requires it.
        """
        if not isinstance(name, str | None):
            raise ConfigError(f"name is {name!r}; it must be a text, or None for the adapter's own name.")
        self.session.check_takes_adapters()  # first: what reading one advises, to export it, does not help others
        path = as_path(folder)
        check_required_signature(path)
        adapter = read_adapter(path, self.manifest, self.config)
        name = name or adapter.manifest.name
        with in_huge_pages():
            self.session.load_adapter(name, adapter)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter, and forget what was computed with it.

        Raises:
            ConfigError: none of that name is loaded, or an answer or a conversation still uses it.
        """
        with in_huge_pages():
            self.session.unload_adapter(name)

    def adapted(self, name: str) -> LanguageModel:
        """Return this model with an adapter as its default: in `generation_config`, and for `score` and `embed`.

        Both are one model in memory.

        Raises:
            ConfigError: none of that name is loaded.
        """
        self._check_adapter(name)
        model = copy.copy(self)
        model.generation_config = self.generation_config.replace(adapter=name)
        return model

    def _check_adapter(self, name: str | None) -> None:
        if name is not None and name not in tuple(self.adapters):
            here = ", ".join(self.adapters) or "none"
            raise ConfigError(f"{self.name} has no adapter {name!r}; loaded: {here}. Load it: load_adapter, --adapter.")

    def new_cache(self) -> KVCache:
        """Return an empty KV cache, for the default adapter if there is one."""
        cache = self.session.new_cache()
        cache.use_adapter(self.generation_config.adapter)
        return cache

    def encode_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool] | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Render a conversation with the model's chat template, and encode it up to where the answer begins.

        Where the conversation ends with words of the assistant's, the answer continues them. What a message or a tool
        says never becomes a control token. tools: definitions that the model sees, in OpenAI's form; a template that
        knows none gets them as a text of the system message. template_variables: what else the template reads by name
        (`{"enable_thinking": False}`); `chat_template.variables` lists the names.

        Raises:
            ChatTemplateError: the model has no template, or it refuses the conversation.
            ConfigError: a tool is not in OpenAI's form, or a variable is one that edgelm sets.
        """
        if self.chat_template is None:
            raise ChatTemplateError(f"{self.name} {WITHOUT_TEMPLATE}")
        variables = self.chat_template.check_variables(template_variables)
        format_ = tool_format(self.chat_template, self.tokenizer)
        turns, of_tools, marks = show_tools(messages, listed_tools(tools), format_)
        return encode_chat(self.chat_template, self.tokenizer, turns, variables={**variables, **of_tools}, marks=marks)

    def chat_prompt(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerationConfig,
        tools: Sequence[Tool] | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> tuple[list[int], GenerationConfig, Reasoning | None]:
        """Return the prompt of an answer to a conversation, its settings, and how it tells what it thinks.

        A context shift, if there is one, keeps what stands before the conversation's first turn. Where that is too much
        to be kept, and all fits the context, there is none. Tokens are healed only where the conversation ends with
        words of the assistant's.

        Raises:
            ChatTemplateError, ConfigError: as from `encode_chat`.
        """
        prompt_ids = self.encode_chat(messages, tools, template_variables)  # refuses what is no conversation
        if config.context_shift is not None:
            system = [message for message in messages[:1] if message["role"] == "system"]
            ends = ([*system, Message(role="user", content=text)] for text in ("a", "b"))
            turns = [self.encode_chat(end, tools, template_variables) for end in ends]
            opening = next((i for i, (id_, other) in enumerate(zip(*turns, strict=False)) if id_ != other), 0)
            # While it fits, a conversation whose opening takes more than half of the context is answered without one.
            has_to_go = opening <= self.context_length // 2 or len(prompt_ids) > self.context_length
            config = config.replace(context_shift=max(config.context_shift, opening) if has_to_go else None)
        format_ = tool_format(self.chat_template, self.tokenizer)
        begun = words_to_continue(show_tools(messages[-1:], (), format_)[0])
        config = config.replace(begins_text=not begun)
        if config.token_healing and not begun:  # the prompt ends with what the template writes, with nobody's words
            config = config.replace(token_healing=False)
        return prompt_ids, *reasoning_settings(config, self.chat_template, self.tokenizer, prompt_ids, begun)

    def answer(self, prompt: str | Sequence[int], config: GenerationConfig | None = None) -> Answer:
        """Check a prompt, and return the answer to it, not begun: what `stream` and the engine run.

        Raises:
            ContextLengthError: the prompt does not fit the model's context, or has no tokens; with several beams, also
                where it has more than a row of a batch.
            TokenizerError: a token id is none of the model's.
            ConfigError: a token of `logit_bias` or `stop_token_ids` is none of the model's, its `adapter` is not
                loaded, the draft (`speculation`) has another tokenizer or an encoder, or it or the model keeps states,
                `context_shift` keeps more than half of the context, or something is asked that only models with an
                encoder have, or only those without.
        """
        config = or_default("config", config, self.generation_config)
        self._check_adapter(config.adapter)
        config.check_fits(self.name, encodes=self.config.encoder is not None)
        prompt_ids: Sequence[int]
        source_ids: Sequence[int] = ()
        if self.config.encoder is None:
            prompt_ids = self._checked_ids(prompt, fewest=1, config=config)
        else:
            source = self.languages.source_ids(prompt, config.source_language, config.target_language)
            source_ids = self._checked_ids(source, fewest=1)
            prompt_ids = self.languages.config_for(config.target_language).decoder_prompt_ids
        return Answer(
            tokenizer=self.tokenizer,
            model_config=self.config,
            prompt_ids=prompt_ids,
            config=config,
            speculator=self._speculator(config),
            source_ids=source_ids,
        )

    def _speculator(self, config: GenerationConfig) -> Speculator | None:
        if config.speculation is None:
            return None
        draft = None if isinstance(config.speculation, str) else config.speculation
        for model in (self,) if draft is None else (self, draft):
            if kinds := model.config.state_kinds:
                raise ConfigError(
                    f"speculation is set, and {model.name} has {kinds}, which cannot take back a wrong guess. "
                    "Leave it out."
                )
        drafter = PromptLookup() if draft is None else DraftModel(draft, self)
        exact = config.exact_speculation
        return Speculator(drafter, self.row_costs if exact else self.step_costs, exact=exact)

    def stream(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        cancel: threading.Event | None = None,
        cache: KVCache | None = None,
    ) -> Generator[Chunk, None, None]:
        """Continue a text (or its token ids), and yield the answer in pieces of whole characters.

        A model with an encoder reads the text, and answers it: with a translation, or a summary.

        config: None takes the defaults of the model's author. cancel: set from any thread, it ends the answer within
        one step, with finish_reason "cancelled". cache: one from `new_cache`, used by one generation at a
        time; what it holds of the prompt is not computed again, and it holds prompt and answer afterwards.

        Raises:
            ContextLengthError: the prompt does not fit the model's context, or has no tokens.
            OutOfMemoryError: its keys and values do not fit the memory.
            TokenizerError: a token id is none of the model's.
            ConfigError: as from `answer`; `cache` is none; it or `prefixes` are of another model; `cancel` is no event.
            EdgeLMError: while it is read, another answer is computed with the cache, or was since the last chunk.
        """
        # Checked with the call, not with the first chunk.
        answer = self.answer(prompt, config)
        owner = self.config, self.fingerprint
        if cache is not None and not of_class("cache", cache, KVCache, "which new_cache() returns").is_for(*owner):
            raise ConfigError(f"cache is one of another model. Take what new_cache() of {self.name} returns.")
        # One of asyncio has is_set too, but a loop that reads an answer sets none meanwhile.
        is_event = callable(getattr(cancel, "is_set", None)) and not iscoroutinefunction(getattr(cancel, "wait", None))
        if cancel is not None and not is_event:
            raise ConfigError(f"cancel is {cancel!r}; it must be a threading.Event.")
        prefixes = self.prefixes.of_model(*owner)
        (cache or self.session.new_cache()).check_room(len(answer.prompt_ids))
        return SHORT_SWITCH_INTERVAL.during(answer.chunks(self.session, cache, prefixes, cancel))

    def stream_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerationConfig | None = None,
        *,
        cancel: threading.Event | None = None,
        cache: KVCache | None = None,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice = "auto",
        template_variables: Mapping[str, object] | None = None,
    ) -> Generator[Chunk, None, None]:
        """Answer a conversation, as `stream` does; what the model thinks before it answers is a chunk's `reasoning`.

        tools: what the answer may call, in OpenAI's form; calls come as `tool_calls` of the chunks, apart from the
        text, and an answer that calls ends with finish_reason "tool_calls". tool_choice: whether it calls is left to
        the model ("auto"), forbidden ("none"), demanded ("required"), or demanded of one tool ({"name": ...}).
        template_variables: as in `encode_chat`.

        Raises:
            ChatTemplateError, ConfigError: as from `encode_chat`; or the config has a constraint beside the tools that
                is no JSON schema.
            ContextLengthError: the conversation does not fit the model's context.
        """
        prompt_ids, settings, take = self.chat_request(messages, config, tools, tool_choice, template_variables)
        chunks = self.stream(prompt_ids, settings, cancel=cancel, cache=cache)
        return chunks if take is None else taken(chunks, take)

    def chat_request(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerationConfig | None,
        tools: Sequence[Tool] | None,
        tool_choice: ToolChoice,
        template_variables: Mapping[str, object] | None = None,
    ) -> tuple[list[int], GenerationConfig, Callable[[Chunk], Chunk] | None]:
        """Return the prompt and the settings of an answer to a conversation, and what takes thinking and calls out of
        its chunks; None where there are neither.

        Raises:
            ChatTemplateError, ConfigError: as from `stream_chat`.
        """
        settings = or_default("config", config, self.generation_config)
        tools = listed_tools(tools)
        format_ = tool_format(self.chat_template, self.tokenizer)
        settings = tool_settings(settings, tools, tool_choice, format_)
        shown = tools if tool_choice != "none" else []
        prompt_ids, settings, reasoning = self.chat_prompt(messages, settings, shown, template_variables)
        thoughts = reasoning.splitter() if reasoning else None
        calls = ToolCallParser(format_, tool_parameters(shown)) if shown else None
        return prompt_ids, settings, take_in_turn(thoughts, calls)

    def generate(self, prompt: str | Sequence[int], config: GenerationConfig | None = None) -> Completion:
        """Continue a text, and return the whole answer; its settings and errors are those of `stream`."""
        return join(self.stream(prompt, config))

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        max_batch: int = 8,
    ) -> list[Completion]:
        """Continue several texts together, and return the whole answers in the order of the prompts.

        config: one for all, or one for each. max_batch: how many are computed at once; with an encoder, and beyond the
        original context of LongRoPE, one. In int8 and fp32 each answer is the one that `generate` gives
        (docs/guides/engine.md says what holds in other precisions). Prompts that begin the same way, such as several
        samples of one, compute that once.

        Raises:
            ConfigError: there are not as many configs as prompts, or `max_batch` is no whole number of 1 or more.
            ContextLengthError, TokenizerError: a prompt is not one that `generate` takes; nothing was computed then.
        """
        from edgelm.batching.engine import generate_batch  # the engine stands on this class

        return generate_batch(self, prompts, config, max_batch)

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice = "auto",
        template_variables: Mapping[str, object] | None = None,
    ) -> Completion:
        """Answer a conversation, and return the whole answer; its settings and errors are those of `stream_chat`."""
        chunks = self.stream_chat(
            messages, config, tools=tools, tool_choice=tool_choice, template_variables=template_variables
        )
        return join(chunks)

    def infill(self, prefix: str, suffix: str, config: GenerationConfig | None = None) -> Completion:
        """Write what stands between two texts, with a model that was trained to (Qwen2.5-Coder, StarCoder, Code Llama).

        Raises:
            TokenizerError: the model has no tokens for it; the message lists those that edgelm knows.
            ContextLengthError: the texts do not fit the model's context.
        """
        return self.generate(fill_in_ids(self.tokenizer, prefix, suffix), config)

    def embed(
        self, texts: Sequence[str], *, pooling: Pooling = DEFAULT_POOLING, normalize: bool = True
    ) -> NDArray[np.float32]:
        """Turn texts into vectors: float32 [N, E], each of length 1 where `normalize` is set.

        pooling: what a vector is made of. "values", what the last layers keep of each token, tells texts apart best
        with models that were trained to write; "mean" and "last" are the hidden states behind the last norm, as models
        trained for embeddings want them.

        Raises:
            ConfigError: there is no such pooling, the package's graph gives no hidden states, `texts` is one text, or
                the model has an encoder.
            TokenizerError: a text is neither that nor token ids, or an id is none of the model's.
            ContextLengthError: a text has no tokens, or does not fit the model's context.
        """
        self._require_no_encoder("embed")
        texts = as_list(texts, "embed takes a list of texts")
        id_lists = []
        for i, text in enumerate(texts):  # refuses a bad one before the first is begun
            with reading(f"texts[{i}]"):
                id_lists.append(self._checked_ids(text, fewest=1))
        vectors = [embed(self, ids, pooling, normalize=normalize) for ids in id_lists]
        # Of no texts, as many vectors: as wide as that of any, so that they multiply with others.
        return np.stack(vectors) if vectors else np.zeros((0, embed(self, [0], pooling).size), np.float32)

    def score(self, text: str | Sequence[int], *, alternatives: int = 0) -> Scores:
        """Compute the log-probability (natural) of each token of a text after the first, and the perplexity.

        alternatives: how many of the most likely tokens at each place come with it.

        Raises:
            ContextLengthError: the text has fewer than two tokens, or does not fit the model's context.
            ConfigError: `alternatives` is no whole number of 0 or more, or the model has an encoder.
            TokenizerError: `text` is neither that nor token ids, or an id is none of the model's.
        """
        self._require_no_encoder("score")
        if not is_whole(alternatives) or alternatives < 0:
            raise ConfigError(f"alternatives is {alternatives!r}; it must be a whole number of 0 or more.")
        ids = self._checked_ids(text, fewest=2)
        return score(self.session, self.tokenizer, ids, self.new_cache(), alternatives)

    def _require_no_encoder(self, method: str) -> None:
        if self.config.encoder is not None:
            raise ConfigError(f"{self.name} has an encoder, and reads two texts; {method} is for models that read one.")

    def _checked_ids(self, text: str | Sequence[int], fewest: int, config: GenerationConfig | None = None) -> list[int]:
        encoder = self.config.encoder
        ids = self.tokenizer.encode_prompt(text) if isinstance(text, str) else as_token_ids(text)
        most = self.context_length if encoder is None else encoder.max_position_embeddings
        if len(ids) < fewest:
            raise ContextLengthError(f"The text has too few tokens: {len(ids)}; it needs {fewest} or more.")
        if len(ids) > most and (config is None or config.context_shift is None):
            way = "" if config is None else ", or drop its oldest part: context_shift=0 (--context-shift 0)"
            counts = f"The text has {len(ids)} tokens; this model's maximum context length is {most}"
            raise ContextLengthError(f"{counts}. Shorten it{way}.")
        for id_ in ids:
            if not 0 <= id_ < self.config.vocab_size:
                raise TokenizerError(f"The text has token id {id_}; the model's are 0 to {self.config.vocab_size - 1}.")
        return ids
