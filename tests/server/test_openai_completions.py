"""POST /v1/completions and the tokenizer's endpoints, as evaluation tools use them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from edgelm_server import EdgelmServer
from metaspace_tokenizer import write_metaspace

from edgelm import GenerationConfig, LanguageModel
from edgelm.decoding.answer import goes_on
from edgelm.server import delivery
from edgelm.server.openai_chat import Frame
from edgelm.server.openai_completions import CompletionWriter
from edgelm.testing import ScriptedDecoder
from edgelm.text.tokenizer import Tokenizer

SEA = "The sea is blue"


def complete(serving, **fields):
    return serving.post("/v1/completions", {"prompt": SEA, "max_tokens": 8, **fields})


def test_a_text_is_continued_as_the_library_does(serving, tiny):
    expected = tiny.generate(SEA, GenerationConfig(max_new_tokens=8))
    reply = complete(serving)
    (choice,) = reply.json["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == (expected.text, "length", None)
    assert reply.json["object"] == "text_completion"
    *chunks, done = complete(serving, stream=True).events
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected.text
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"


def test_what_stands_between_two_texts_is_written_by_a_model_that_learned_it(tiny):
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    prelude = f"from edgelm.text import fill_in_middle\nfill_in_middle.FILL_IN_TOKENS = ({names!r},)"
    before, behind, middle = (tiny.tokenizer.control_tokens[name] for name in names)
    encode = tiny.tokenizer.encode
    prompt = [before, *encode(SEA), behind, *encode(" today."), middle]
    expected = tiny.generate(prompt, GenerationConfig(max_new_tokens=8)).text
    with EdgelmServer(prelude=prelude) as server:
        for texts in (SEA, [SEA]):
            assert complete(server, prompt=texts, suffix=" today.").json["choices"][0]["text"] == expected
        body = {
            "model": "tiny-random",
            "prompt": SEA,
            "suffix": " today.",
            "stream": False,
            "options": {"num_predict": 8},
        }
        assert server.post("/api/generate", body).json["response"] == expected
        refused = server.post("/api/generate", body | {"system": "Be kind."})
        long = server.post("/api/generate", body | {"prompt": SEA * 600})
    assert "maximum context length is 1024" in long.json["error"]  # whose beginning would be lost else
    assert (refused.status, "system does not go with suffix" in refused.json["error"]) == (400, True)


def test_without_a_limit_there_are_sixteen_tokens(serving):
    assert serving.post("/v1/completions", {"prompt": SEA}).json["usage"]["completion_tokens"] == 16


def test_a_limit_of_minus_one_fills_the_context(serving):
    reply = serving.post("/v1/completions", {"prompt": SEA, "max_tokens": -1, "ignore_eos": True})
    assert reply.json["choices"][0]["finish_reason"] == "length"
    assert reply.json["usage"]["total_tokens"] >= 1024


def test_texts_ids_and_batches_of_both_are_prompts(serving, tiny):
    other = "A wave"
    ids, other_ids = tiny.tokenizer.encode(SEA), tiny.tokenizer.encode(other)
    expected = [tiny.generate(text, GenerationConfig(max_new_tokens=8)).text for text in (SEA, other)]
    for prompt in ([SEA, other], [ids, other_ids]):
        reply = complete(serving, prompt=prompt)
        assert [choice["text"] for choice in reply.json["choices"]] == expected
        assert reply.json["usage"]["prompt_tokens"] == len(ids) + len(other_ids)
    assert complete(serving, prompt=ids).json["choices"][0]["text"] == expected[0]
    assert len(complete(serving, prompt=[SEA, other], n=2, temperature=1).json["choices"]) == 4


def test_more_prompts_than_the_engine_takes_at_once_are_all_answered(serving):
    prompts = [f"{SEA} {i}" for i in range(100)]
    choices = complete(serving, prompt=prompts, max_tokens=1).json["choices"]
    assert [choice["index"] for choice in choices] == list(range(100))


def test_the_likeliest_of_several_answers_by_token_come_back(serving, tiny):
    fields = {"temperature": 1, "seed": 5}
    config = GenerationConfig(max_new_tokens=8, temperature=1.0, logprobs=0)
    drawn = [tiny.generate(SEA, config.replace(seed=5 + i)) for i in range(6)]
    by_likelihood = sorted(drawn, key=lambda answer: -sum(t.logprob for t in answer.logprobs) / len(answer.token_ids))
    reply = complete(serving, best_of=6, n=2, prompt=[SEA, SEA], **fields)
    assert [choice["text"] for choice in reply.json["choices"]] == [answer.text for answer in by_likelihood[:2]] * 2
    assert [choice["index"] for choice in reply.json["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in reply.json["choices"])
    assert reply.json["usage"]["completion_tokens"] == 2 * sum(len(answer.token_ids) for answer in drawn)
    assert by_likelihood[0].text != drawn[0].text


def test_echo_with_logprobs_scores_the_prompt_as_evaluation_asks(serving, tiny):
    ids = tiny.tokenizer.encode(SEA)
    reply = complete(serving, prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0)
    (choice,) = reply.json["choices"]
    scores, answer = tiny.score(ids).tokens, tiny.generate(SEA, GenerationConfig(max_new_tokens=1, logprobs=1))
    logprobs = choice["logprobs"]
    assert choice["text"] == SEA + answer.text
    assert "".join(logprobs["tokens"][: len(ids)]) == SEA
    assert logprobs["token_logprobs"][0] is None
    expected = [token.logprob for token in (*scores, *answer.logprobs)]
    # The same computation in another process; 0.0 measured.
    assert logprobs["token_logprobs"][1:] == pytest.approx(expected, abs=1e-6)
    for value, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert value in top.values()
        assert max(top.values()) >= value
    assert logprobs["text_offset"][:2] == [0, len(logprobs["tokens"][0])]


def test_an_echo_alone_has_no_answer(serving):
    reply = complete(serving, echo=True, logprobs=0, max_tokens=0)
    (choice,) = reply.json["choices"]
    assert choice["text"] == SEA
    assert choice["logprobs"]["top_logprobs"] is None
    assert reply.json["usage"]["completion_tokens"] == 0
    streamed = complete(serving, echo=True, logprobs=0, max_tokens=0, stream=True).events
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed[:-1]) == SEA


def test_an_echo_streams_before_the_answer(serving, tiny):
    expected = tiny.generate(SEA, GenerationConfig(max_new_tokens=8)).text
    *chunks, usage, _ = complete(
        serving, echo=True, stream=True, logprobs=2, stream_options={"include_usage": True}
    ).events
    assert chunks[0]["choices"][0]["text"] == SEA
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == SEA + expected
    assert sum(len((c["choices"][0]["logprobs"] or {"tokens": []})["tokens"]) for c in chunks[1:]) == 8
    assert usage["usage"]["completion_tokens"] == 8


def test_who_has_one_prompt_scored_does_not_wait_for_all_of_who_has_many():
    served = SimpleNamespace(scoring=asyncio.Lock())
    scored = []

    def scoring(prompts):
        for prompt in prompts:
            scored.append(prompt)
            while not served.scoring._waiters and scored == ["many"]:
                time.sleep(0.001)  # until the other request waits
            yield True

    async def both():
        await asyncio.gather(*(delivery._scored(served, scoring(prompts)) for prompts in (["many"] * 4, ["one"])))

    asyncio.run(both())
    assert scored == ["many", "one", "many", "many", "many"]


@pytest.mark.parametrize("echo", [True, False])
def test_offsets_go_on_from_chunk_to_chunk(serving, echo):
    fields = {"prompt": [SEA, "The sky"], "echo": echo, "logprobs": 0}
    whole = complete(serving, **fields).json["choices"]
    offsets: list[list[int]] = [[], []]
    for chunk in complete(serving, stream=True, **fields).events[:-1]:
        (choice,) = chunk["choices"]
        offsets[choice["index"]] += (choice["logprobs"] or {"text_offset": []})["text_offset"]
    assert offsets == [choice["logprobs"]["text_offset"] for choice in whole]
    assert all(of_one == sorted(of_one) and of_one[-1] > 0 for of_one in offsets)


def test_offsets_count_the_characters_of_the_text_before_a_token(serving, tiny):
    prompt = [tiny.tokenizer.control_tokens["<|im_start|>"], *tiny.tokenizer.encode("\u00e9\u6f22 a sea")]
    reply = complete(serving, prompt=[prompt], echo=True, logprobs=0, max_tokens=1, temperature=0)
    (choice,) = reply.json["choices"]
    before = [tiny.tokenizer.decode(prompt[:i], skip_control_tokens=False) for i in range(len(prompt) + 1)]
    # A character that is not whole yet stands there as U+FFFD.
    assert choice["logprobs"]["text_offset"] == [len(text.rstrip("\ufffd")) for text in before]


@pytest.mark.parametrize(("before", "text"), [("", "his sea"), ("hi", " his sea")])
def test_offsets_know_whether_an_answer_loses_the_space_that_it_begins_with(tiny, tmp_path, before, text):
    tokenizer, config = Tokenizer.load(write_metaspace(tmp_path)), GenerationConfig(logprobs=0, max_new_tokens=4)
    prompt = [tokenizer.control_tokens["<s>"], *tokenizer.encode(before)]
    said = tokenizer.encode("his sea")
    model = LanguageModel(
        session=ScriptedDecoder(replace(tiny.config, vocab_size=tokenizer.vocab_size), said),
        tokenizer=tokenizer,
        chat_template=None,
        generation_config=config,
        manifest=tiny.manifest,
    )
    writer = CompletionWriter(
        frame=Frame(model="tiny", kind="text_completion", prefix="cmpl"),
        tokenizer=tokenizer,
        echoes=None,
        going_on=[goes_on(tokenizer, prompt, config)],
        copies=1,
        kept=1,
        logprobs=0,
        without_answer=False,
        with_usage=False,
    )
    (choice,) = writer.whole([model.generate(prompt)])["choices"]
    assert choice["text"] == text
    space = len(" his sea") - len(text)
    assert choice["logprobs"]["text_offset"] == [0, *(len(tokenizer.token_text(said[0])) - space + i for i in range(3))]


def test_a_token_that_is_no_whole_character_has_its_bytes_spelled_out(serving, tiny):
    (id_,) = tiny.tokenizer.encode("\u00e9")[:1]
    reply = complete(serving, prompt=[[65, id_]], echo=True, logprobs=1, max_tokens=1)
    assert reply.json["choices"][0]["logprobs"]["tokens"][1] == f"bytes:\\x{tiny.tokenizer.token_bytes(id_)[0]:02x}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": []}, "prompt has 0 items"),
        ({"prompt": ""}, "prompt has no tokens"),
        ({"prompt": [[]]}, "prompt[0] has 0 items"),
        ({"prompt": [[99999]]}, "The text has token id 99999; the model's are 0 to 319."),
        ({"prompt": [[99999, 1]], "echo": True, "logprobs": 1}, "The text has token id 99999"),
        ({"prompt": [-1]}, "prompt[0] is -1; it must be from 0"),
        ({"prompt": [1, True]}, "prompt[1] is True; it must be a whole number"),
        ({"prompt": [[1, 2**31 + 1]]}, f"prompt[0][1] is {2**31 + 1}; it must be from 0"),
        ({"prompt": {str(i): i for i in range(99)}}, "prompt is {'0': 0, '1': 1, '2': 2, '3': 3, '4': 4,…; it must be"),
        ({"prompt": "x" * 3000}, "this model's maximum context length is 1024"),
        (
            {"prompt": [[1] * 1000] * 25, "echo": True, "logprobs": 20},
            "The prompts have 525000 log-probabilities; at most 524288 are kept. Send fewer prompts at once.",
        ),
        ({"logprobs": 100}, "logprobs is 100; it must be from 0 to 20."),
        ({"reasoning_effort": "low"}, "reasoning_effort is not supported: /v1/chat/completions has it."),
        ({"best_of": 9}, "best_of is 9; it must be from 1 to 8."),
        ({"best_of": 2, "n": 3}, "best_of is 2, and n is 3: n of best_of answers come back."),
        ({"best_of": 2, "stream": True}, "best_of is 2, and n is 1: what is chosen at the end is not streamed."),
        ({"suffix": "x"}, "The model has no tokens to fill in the middle; edgelm knows "),
        ({"suffix": "x", "echo": True}, "suffix goes with prompts that are texts, and without echo."),
        ({"suffix": "x", "prompt": [1, 2]}, "suffix goes with prompts that are texts, and without echo."),
    ],
)
def test_what_cannot_be_done_is_refused(serving, fields, words):
    reply = complete(serving, **fields)
    assert reply.status == 400, reply.data
    assert words in reply.json["error"]["message"]


def test_a_text_without_tokens_is_not_told_to_be_too_long(serving):
    for path, param in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        error = serving.post(path, {param: ["x", ""]}).json["error"]
        assert error["message"] == f"{param}[1] has no tokens; write at least one character."
        assert (error["param"], error["code"]) == (f"{param}[1]", None)


def test_texts_and_conversations_are_tokenized_and_back(serving, tiny):
    ids = tiny.tokenizer.encode(SEA)
    answer = serving.post("/tokenize", {"prompt": SEA, "return_token_strs": True}).json
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), 1024)
    assert "".join(answer["token_strs"]) == SEA
    assert serving.post("/detokenize", {"tokens": ids}).json == {"prompt": SEA}
    turns = [{"role": "user", "content": "x"}]
    assert serving.post("/tokenize", {"messages": turns}).json["tokens"] == tiny.encode_chat(turns)
    assert serving.post("/detokenize", {"tokens": [99999]}).status == 400


def test_the_tokenizer_is_described(serving):
    info = serving.get("/tokenizer_info").json
    assert (info["eos_token"], info["eos_token_id"], info["vocab_size"]) == ("<|im_end|>", 2, 320)
