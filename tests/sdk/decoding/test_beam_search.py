"""Beam search, against transformers' of the same weights: the same answers, and the same scores."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from held_engine import held
from make_tiny_model import make_checkpoint

import edgelm
from edgelm import Engine, EngineOptions, GenerationConfig, LanguageModel
from edgelm.decoding.beam_search import BeamSearch
from edgelm.decoding.sampling import Sampler
from edgelm.errors import ConfigError, ContextLengthError, EdgeLMError
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.testing import scripted_model

PROMPT = np.random.default_rng(7).integers(3, 320, 150).tolist()
# Enough of the vocabulary that answers end at different lengths.
END_IDS = (2, *range(40, 70))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model's weights in transformers."""
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("source") / "tiny")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def theirs(llama: Any, prompt: list[int], **settings: Any) -> tuple[list[int], float]:
    """Transformers' answer and its score."""
    result = llama.generate(
        torch.tensor([prompt]), do_sample=False, output_scores=True, return_dict_in_generate=True, pad_token_id=0,
        **settings,
    )  # fmt: skip
    answer = result.sequences[0, len(prompt) :].tolist()
    return answer, float(result.sequences_scores[0])


@pytest.mark.parametrize(
    ("length", "num_beams", "length_penalty", "end_ids"),
    [(150, 2, 1.0, (2,)), (5, 3, 1.0, END_IDS), (150, 4, 0.0, END_IDS), (5, 5, 2.0, END_IDS), (5, 4, -1.0, END_IDS),
     (150, 8, 1.0, END_IDS)],
)  # fmt: skip
def test_the_answers_and_scores_are_those_of_transformers(
    model: LanguageModel, llama: Any, length: int, num_beams: int, length_penalty: float, end_ids: tuple[int, ...]
) -> None:
    config = GenerationConfig(
        num_beams=num_beams, length_penalty=length_penalty, max_new_tokens=20, stop_token_ids=end_ids, logprobs=0
    )
    completion = model.generate(PROMPT[:length], config)
    expected, score = theirs(
        llama, PROMPT[:length], num_beams=num_beams, length_penalty=length_penalty, max_new_tokens=20,
        eos_token_id=list(end_ids),
    )  # fmt: skip
    assert list(completion.token_ids) == expected
    total = sum(token.logprob for token in completion.logprobs)
    # Log-probabilities of float32 logits that differ by 1e-5; 3e-6 measured.
    assert total / len(expected) ** length_penalty == pytest.approx(score, abs=1e-4)
    assert completion.finish_reason == ("stop" if expected[-1] in end_ids else "length")


def test_of_a_step_the_best_few_may_end_and_as_many_go_on_whatever_ends_between_them() -> None:
    model, config = scripted_model("x"), GenerationConfig(num_beams=2, max_new_tokens=9)
    logits_V = np.full(model.config.vocab_size, -np.inf, np.float32)
    logits_V[[5, 2, 3, 4, 6]] = np.log([0.3, 0.25, 0.2, 0.15, 0.1])
    search = BeamSearch(config, lambda token_ids: token_ids[-1] in (2, 3, 4), 3, KVBatch(model.config))
    assert not search.begin(logits_V, model.new_cache(), Sampler(config))
    assert [beam.token_ids for beam in search._found] == [(2,)]  # 3 and 4 are not among the best two
    assert sorted(beam.token_ids for beam in search.beams) == [(5,), (6,)]


def test_processors_see_log_probabilities_as_in_transformers(model: LanguageModel, llama: Any) -> None:
    config = GenerationConfig(num_beams=3, repetition_penalty=1.5, max_new_tokens=16, ignore_eos=True)
    expected, _ = theirs(llama, PROMPT[:9], num_beams=3, repetition_penalty=1.5, max_new_tokens=16, eos_token_id=None)
    assert list(model.generate(PROMPT[:9], config).token_ids) == expected
    assert list(model.generate(PROMPT[:9], config.replace(repetition_penalty=1.0)).token_ids) != expected


def test_a_search_finds_a_likelier_answer_than_the_greedy_one(model: LanguageModel) -> None:
    config = GenerationConfig(max_new_tokens=12, ignore_eos=True, logprobs=0)
    greedy, found = (
        sum(token.logprob for token in model.generate(PROMPT[:20], config.replace(num_beams=n)).logprobs)
        for n in (1, 8)
    )
    assert found > greedy


def test_the_cache_holds_the_prompt_and_the_answer_afterwards(model: LanguageModel) -> None:
    model.prefixes = PrefixCache(model.config, 0)
    config = GenerationConfig(num_beams=4, max_new_tokens=20, stop_token_ids=END_IDS)
    cache = model.session.new_cache()
    (*_, last) = model.stream(PROMPT, config, cache=cache)
    answer = model.generate(PROMPT, config).token_ids
    assert last.usage is not None
    assert cache.token_ids == [*PROMPT, *answer[:-1]]
    fresh = model.session.new_cache()
    expected_V = model.session.forward((*PROMPT, *answer), fresh)[0]
    # Tokens that were computed one by one, beside the same ones computed together; 3e-6 measured.
    np.testing.assert_allclose(model.session.forward(answer[-1:], cache)[0], expected_V, atol=1e-4)


def test_a_stop_ends_beams_and_is_left_out_of_the_text() -> None:
    said = scripted_model("One, two, three.").generate("x", GenerationConfig(num_beams=3, stop=(", th",)))
    assert (said.text, said.finish_reason) == ("One, two", "stop")


def test_beside_a_stop_beams_end_at_the_end_tokens_too(model: LanguageModel) -> None:
    config = GenerationConfig(num_beams=4, max_new_tokens=20, stop_token_ids=END_IDS)
    ends = []
    for length in (5, 20, 60):
        plain, beside = (model.generate(PROMPT[:length], config.replace(stop=stop)) for stop in ((), ("never said",)))
        assert beside.token_ids == plain.token_ids
        ends.append(plain.finish_reason)
    assert ends == ["length", "stop", "stop"]


def test_a_search_fills_the_context_and_no_more(model: LanguageModel) -> None:
    prompt = (PROMPT * 8)[: model.context_length - 4]
    completion = model.generate(prompt, GenerationConfig(num_beams=2, ignore_eos=True))
    assert (completion.usage.completion_tokens, completion.finish_reason) == (5, "length")


def test_a_search_ends_where_a_longer_text_would_turn_otherwise() -> None:
    model = scripted_model("Fine.")
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 16.0}
    values, half = model.config.to_dict(), model.config.head_dim // 2
    values["rope_scaling"] |= scaling | {"short_factor": [1.0] * half, "long_factor": [2.0] * half}
    model.session.config = edgelm.ModelConfig.from_dict(values)
    completion = model.generate([5] * 60, GenerationConfig(num_beams=2, ignore_eos=True))
    assert (completion.usage.completion_tokens, completion.finish_reason) == (5, "length")


def test_a_prompt_that_several_beams_cannot_go_on_from_is_refused_before_it_is_read(longrope_package: Path) -> None:
    model = edgelm.load(longrope_package)
    with pytest.raises(ContextLengthError, match=r"has 65 tokens; with several beams this model reads up to 64\. Sho"):
        model.stream([5] * 65, GenerationConfig(num_beams=2))
    assert model.generate([5] * 65, GenerationConfig(max_new_tokens=2, ignore_eos=True)).finish_reason == "length"


def test_a_search_that_is_cancelled_has_no_answer(model: LanguageModel) -> None:
    cancel = threading.Event()

    def cancel_at_once(logits_V: Any, token_ids: Any) -> None:
        cancel.set()

    config = GenerationConfig(num_beams=2, ignore_eos=True, processors=(cancel_at_once,))
    (last,) = model.stream(PROMPT[:5], config, cancel=cancel)
    assert (last.text, last.token_ids, last.finish_reason) == ("", (), "cancelled")


def test_a_processor_that_leaves_no_token_is_an_error(model: LanguageModel) -> None:
    config = GenerationConfig(num_beams=2, processors=(lambda logits_V, _: np.full_like(logits_V, -np.inf),))
    with pytest.raises(EdgeLMError, match="A processor of the config left -inf as the best logit"):
        model.generate(PROMPT[:5], config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0.7}, "temperature is 0.7; beam search chooses every token itself. Set temperature to 0.0."),
        ({"speculation": "prompt_lookup"}, "num_beams is 2, and speculation is 'prompt_lookup'"),
    ],
)
def test_what_chooses_tokens_otherwise_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GenerationConfig(num_beams=2, **fields)


@pytest.mark.parametrize(("room", "end_ids"), [(20_000, END_IDS), (850, ())])
def test_searches_in_an_engine_are_those_of_each_alone(
    model: LanguageModel, room: int, end_ids: tuple[int, ...]
) -> None:
    plain = GenerationConfig(max_new_tokens=30, stop_token_ids=end_ids, logprobs=1)
    prompts = [PROMPT[:length] for length in (5, 150, 40, 64, 90, 1, 33, 120)]
    configs = [
        plain.replace(num_beams=beams, length_penalty=0.5 * i, repetition_penalty=1.0 + 0.1 * i)
        for i, beams in enumerate((4, 3, 1, 2, 1, 5, 2, 1))
    ]
    model.prefixes = PrefixCache(model.config, 0)
    alone = [model.generate(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
    options = EngineOptions(max_batch=5, max_kv_bytes=room * model.config.kv_bytes_per_token)
    with Engine(model, options) as engine:
        with held(engine):
            answers = [engine.submit(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
        together = [edgelm.join(answer) for answer in answers]
        assert engine.stats.kv_bytes == 0
    for answer, expected in zip(together, alone, strict=True):
        assert (answer.token_ids, answer.logprobs) == (expected.token_ids, expected.logprobs)
        assert (answer.text, answer.finish_reason) == (expected.text, expected.finish_reason)
    assert (engine.stats.preempted > 0) == (room == 850)


def test_a_search_that_lost_its_rows_waits_until_it_would_get_further(model: LanguageModel) -> None:
    long = GenerationConfig(max_new_tokens=150, ignore_eos=True)
    search = GenerationConfig(num_beams=3, max_new_tokens=30, ignore_eos=True)
    with Engine(model, EngineOptions(max_kv_bytes=200 * model.config.kv_bytes_per_token)) as engine:
        with held(engine):
            first, second = engine.submit(PROMPT[:40], long), engine.submit(PROMPT[:10], search)
        assert len(edgelm.join(first).token_ids) == 150
        assert edgelm.join(second).token_ids == model.generate(PROMPT[:10], search).token_ids
        assert engine.stats.preempted == 1


def test_a_batch_of_prompts_is_searched_together(model: LanguageModel) -> None:
    config = GenerationConfig(num_beams=3, max_new_tokens=12, ignore_eos=True)
    found = model.generate_batch([PROMPT[:20], PROMPT[20:50]], config)
    assert [answer.token_ids for answer in found] == [
        model.generate(prompt, config).token_ids for prompt in (PROMPT[:20], PROMPT[20:50])
    ]


def test_a_search_that_fails_or_is_cancelled_leaves_the_others(model: LanguageModel) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def wait(logits_V: Any, token_ids: Any) -> None:
        if len(token_ids) == 8:
            begun.set()
            goes_on.wait()

    def fail(logits_V: Any, token_ids: Any) -> Any:
        return np.full_like(logits_V, -np.inf) if len(token_ids) > 7 else logits_V

    config = GenerationConfig(num_beams=3, max_new_tokens=12, ignore_eos=True)
    with Engine(model) as engine:
        searches = [
            engine.submit(PROMPT[:5], config.replace(processors=processors)) for processors in ((wait,), (fail,), ())
        ]
        begun.wait()
        searches[0].cancel()
        goes_on.set()
        (last,) = searches[0]
        assert (last.text, last.token_ids, last.finish_reason) == ("", (), "cancelled")
        with pytest.raises(EdgeLMError, match="A processor of the config left -inf as the best logit"):
            list(searches[1])
        assert edgelm.join(searches[2]).token_ids == model.generate(PROMPT[:5], config).token_ids


def test_beams_that_cannot_fit_the_memory_are_refused(model: LanguageModel) -> None:
    with Engine(model, EngineOptions(max_kv_bytes=100 * model.config.kv_bytes_per_token)) as engine:
        with pytest.raises(ContextLengthError, match=r"120 tokens of prompt and answer in the 4 rows of 3 beams take"):
            engine.submit(PROMPT[:10], GenerationConfig(num_beams=3, max_new_tokens=20))
        found = engine.submit(PROMPT[:10], GenerationConfig(num_beams=3, max_new_tokens=15))
        assert edgelm.join(found).usage.completion_tokens <= 15
