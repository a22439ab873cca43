"""A tiny model and a scripted one, for tests of programs that use edgelm: no download, milliseconds to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.decoding.generate import Decoder
from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.memory.kv_cache import KVCache
from edgelm.package.adapter import Adapter, AdapterManifest
from edgelm.package.manifest import Manifest
from edgelm.runtime.stop_switch import StopSwitch
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer

__all__ = ["ScriptedDecoder", "scripted_model", "tiny_model_path"]

_MOST_CALLS = 10_000


def tiny_model_path() -> Path:
    """Return the folder of a real, complete package: a random 30,000-parameter Transformer that speaks nonsense."""
    return Path(__file__).parent / "tiny_model"


class ScriptedDecoder(Decoder):
    """Stand in for a DecoderSession: whatever the prompt is, the answer is the script, and then the end token.

    `forwarded` lists the token ids of each call, so that a test can see what was computed; of very many calls the last
    ones, so that a server can run on it for days. Of each token the cache keeps, as a key, whether a prompt ends with
    it, and as a value a one at a place that depends on its id.
    """

    def __init__(self, config: ModelConfig, script: Sequence[int]) -> None:
        self.config = config
        self.forwarded: list[list[int]] = []
        self._adapters: dict[str, AdapterManifest] = {}
        self._answer = [*script, *config.eos_token_ids[:1]]

    @property
    def adapters(self) -> Mapping[str, AdapterManifest]:
        """The adapters that it has taken note of."""
        return self._adapters

    def adopt(self, cache: KVCache) -> None:
        """Take any cache: there are no adapters that it could use."""

    def check_process(self) -> None:
        """Any process can give the script."""

    def check_takes_adapters(self) -> None:
        """It takes any, and computes nothing with them."""

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """Take note of it alone: the answer is the script."""
        self._adapters[name] = adapter.manifest

    def unload_adapter(self, name: str) -> None:
        """Forget it.

        Raises:
            ConfigError: none of that name is loaded.
        """
        if self._adapters.pop(name, None) is None:
            raise ConfigError(f"No adapter {name!r} is loaded. Loaded: {', '.join(self.adapters) or 'none'}.")

    def forward(
        self,
        token_ids: Sequence[int],
        cache: KVCache,
        *,
        all_logits: bool = False,
        stop: StopSwitch | None = None,
    ) -> NDArray[np.float32]:
        """Make the script's next token the most likely one, by how much of it stands behind the prompt."""
        start, ids = cache.length, np.asarray(token_ids)
        cache.reserve(start + len(ids))
        cache.token_ids.extend(token_ids)
        self.forwarded.append(list(token_ids))
        del self.forwarded[:-_MOST_CALLS]
        for keys, values in zip(cache.buffers[::2], cache.buffers[1::2], strict=True):
            keys[0, :, start : cache.length] = values[0, :, start : cache.length] = 0
            values[0, 0, start + np.arange(len(ids)), ids % values.shape[3]] = 1
        ends_C = cache.buffers[0][0, 0, :, 0]
        # Pieces of prompts have several tokens, and want one row; of an answer's tokens only one does.
        ends_C[cache.length - 1] = not all_logits and (len(ids) > 1 or start == 0)
        logits_TV = np.zeros((len(ids) if all_logits else 1, self.config.vocab_size), np.float32)
        for row_V, length in zip(logits_TV[::-1], range(cache.length, 0, -1), strict=False):
            begin = int(np.max(np.flatnonzero(ends_C[:length]), initial=-1)) + 1
            most = min(len(self._answer) - 1, length - begin)
            said = next(k for k in range(most, -1, -1) if cache.token_ids[length - k : length] == self._answer[:k])
            row_V[self._answer[said]] = 20.0
        return logits_TV

    def forward_hidden(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Return for each token a row [D] with a one at a place that depends on its id."""
        self.forward(token_ids, cache)
        hidden_TD = np.zeros((len(token_ids), self.config.hidden_size), np.float32)
        hidden_TD[np.arange(len(token_ids)), np.asarray(token_ids) % self.config.hidden_size] = 1.0
        return hidden_TD


def scripted_model(answer: str, *, context_length: int | None = None) -> LanguageModel:
    """Return a model, with the tiny model's tokenizer and chat template, that answers everything with `answer`.

    context_length: tokens of prompt and answer; None takes the tiny model's 1,024. A word has about three of them here.

    Raises:
        ConfigError: `context_length` is no whole number of 1 or more.
    """
    folder = tiny_model_path()
    config, tokenizer = ModelConfig.load(folder), Tokenizer.load(folder)
    if context_length is not None:
        config = replace(config, max_position_embeddings=context_length)
    return LanguageModel(
        session=ScriptedDecoder(config, tokenizer.encode(answer)),
        tokenizer=tokenizer,
        chat_template=ChatTemplate.load(folder),
        generation_config=GenerationConfig(),
        manifest=Manifest.load(folder),
    )
