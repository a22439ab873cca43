"""A KV cache that is given to a model: whose it is, and who computes with it."""

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgelm
from edgelm import GenerationConfig, LanguageModel, join
from edgelm.errors import ConfigError, EdgeLMError
from edgelm.testing import tiny_model_path


def test_a_cache_that_another_thread_computes_with_is_refused(model: LanguageModel) -> None:
    cache, is_in, may_go_on = model.new_cache(), threading.Event(), threading.Event()

    def wait(logits_V: NDArray[np.float32], token_ids: Sequence[int]) -> None:
        is_in.set()
        may_go_on.wait()

    config = GenerationConfig(max_new_tokens=4, ignore_eos=True)
    with ThreadPoolExecutor(1) as worker:
        slow = worker.submit(lambda: join(model.stream("The sea", config.replace(processors=(wait,)), cache=cache)))
        is_in.wait()
        try:
            with pytest.raises(
                EdgeLMError, match=r"Another answer is being computed with the cache of this one\. Read"
            ):
                next(model.stream("A stone", config, cache=cache))
        finally:
            may_go_on.set()
        assert slow.result().token_ids == model.generate("The sea", config).token_ids


def test_a_cache_of_another_model_is_refused(model: LanguageModel) -> None:
    other = edgelm.KVCache(dataclasses.replace(model.config, max_position_embeddings=512))
    with pytest.raises(ConfigError, match=r"cache is one of another model\. Take what new_cache\(\) of tiny-random"):
        model.stream("x", cache=other)
    assert other.model is None  # and is refused to nobody else for it
    with pytest.raises(ConfigError, match=r"cache is 'chat\.npz'; it must be an edgelm\.KVCache, which new_cache\(\)"):
        model.stream("x", cache="chat.npz")  # type: ignore[arg-type]


def test_keys_and_values_are_of_no_use_to_another_model_of_the_same_config(model: LanguageModel) -> None:
    first, *rest = model.manifest.files
    other = LanguageModel(
        session=model.session,
        tokenizer=model.tokenizer,
        chat_template=model.chat_template,
        generation_config=model.generation_config,
        manifest=dataclasses.replace(
            model.manifest, name="finetuned", files=(dataclasses.replace(first, sha256="0" * 64), *rest)
        ),
    )
    config, cache = GenerationConfig(max_new_tokens=2), model.new_cache()
    join(model.stream("The sea", config, cache=cache))
    for given in (cache, cache.clone()):
        with pytest.raises(ConfigError, match=r"cache is one of another model\. Take what new_cache\(\) of finetuned"):
            other.stream("The sea", config, cache=given)
        assert join(edgelm.load(tiny_model_path()).stream("The sea", config, cache=given)).usage.cached_tokens > 0
    other.prefixes = model.prefixes
    for computes in (lambda: other.stream("The sea", config), lambda: edgelm.Engine(other)):
        with pytest.raises(ConfigError, match=r"prefixes is the PrefixCache of another model, .* Give each its own"):
            computes()


@pytest.mark.parametrize("prefixes", [None, 0])
def test_what_is_no_prefix_cache_is_refused_where_it_is_set(model: LanguageModel, prefixes: Any) -> None:
    with pytest.raises(ConfigError, match=r"prefixes is .*; it must be an edgelm\.PrefixCache, such as edgelm\.Pre"):
        model.prefixes = prefixes
