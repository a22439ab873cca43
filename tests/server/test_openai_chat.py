"""POST /v1/chat/completions, against the library's own answers and what OpenAI's interface says."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from edgelm_server import CHAT, TINY, EdgelmServer

from edgelm import GenerationConfig, __version__
from edgelm.package.manifest import Manifest, describe_file
from edgelm.server.api_error import ApiError

HELLO = [{"role": "user", "content": "Hello there"}]


def chat(serving, **fields):
    return serving.post(CHAT, {"messages": HELLO, "max_tokens": 12, **fields})


def test_an_answer_is_the_librarys(serving, tiny):
    reply = chat(serving)
    assert reply.status == 200
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=12))
    (choice,) = reply.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason == "length"
    assert reply.json["object"] == "chat.completion"
    assert reply.json["model"] == "tiny-random"
    assert reply.json["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert reply.json["usage"]["completion_tokens"] == 12
    assert reply.json["usage"]["total_tokens"] == expected.usage.total_tokens


def test_words_that_the_answer_begins_with_are_gone_on_with(serving, tiny):
    begun = [*HELLO, {"role": "assistant", "content": "The sea"}]
    expected = tiny.generate(tiny.encode_chat(begun), GenerationConfig(max_new_tokens=12))
    assert tiny.tokenizer.decode(tiny.encode_chat(begun), skip_control_tokens=False).endswith("assistant\nThe sea")
    reply = chat(serving, messages=begun).json["choices"][0]["message"]["content"]
    options = {"num_predict": 12}
    ollama = serving.post("/api/chat", {"messages": begun, "stream": False, "options": options, "model": "tiny-random"})
    assert reply == ollama.json["message"]["content"] == tiny.chat(begun, GenerationConfig(max_new_tokens=12)).text
    assert reply == expected.text


def test_vllms_fields_may_say_of_an_answers_beginning_what_is_so(serving):
    begun = [*HELLO, {"role": "assistant", "content": "The sea"}]
    for messages, goes_on in ((HELLO, False), (begun, True)):
        said = {"continue_final_message": goes_on, "add_generation_prompt": not goes_on}
        plain = chat(serving, messages=messages).json
        assert chat(serving, messages=messages, **said).json["choices"] == plain["choices"]
        for name, value in said.items():
            error = chat(serving, messages=messages, **{name: not value}).json["error"]
            assert error["message"].startswith(f"{name} has to be {str(value).lower()} here: an answer goes on with")
            assert error["param"] == name


def test_a_stream_has_the_role_first_the_reason_last_and_one_identity(serving):
    whole = chat(serving).json["choices"][0]["message"]["content"]
    reply = chat(serving, stream=True)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = reply.events
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("body", [{"messages": HELLO}, {"prompt": "The sea"}])
def test_an_answer_and_each_of_its_chunks_say_what_made_them(serving, body):
    path = CHAT if "messages" in body else "/v1/completions"
    whole = serving.post(path, body | {"max_tokens": 2}).json
    *chunks, _done = serving.post(path, body | {"max_tokens": 2, "stream": True}).events
    assert {part["system_fingerprint"] for part in (whole, *chunks)} == {f"edgelm-{__version__}"}


def test_the_usage_chunk_comes_where_it_is_asked_for(serving):
    *chunks, usage, _done = chat(
        serving, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
    ).events
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert all(chunk["usage"] is None for chunk in chunks)


def test_settings_reach_the_sampler(serving, tiny):
    fields = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 7, "frequency_penalty": 0.5}
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=12, **fields))
    assert chat(serving, **fields).json["choices"][0]["message"]["content"] == expected.text
    every = chat(serving, **fields | {"top_k": 0}).json["choices"][0]["message"]
    assert chat(serving, **fields | {"top_k": -1, "best_of": 1}).json["choices"][0]["message"] == every


@pytest.mark.parametrize(
    "fields",
    [
        {"top_n_sigma": 0.5},
        {"mirostat_tau": 1.0, "mirostat_eta": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.001},
        {"dry_multiplier": 5.0, "dry_base": 2.0, "dry_allowed_length": 1, "temperature": 0.0},  # it repeats itself
        {"no_repeat_ngram_size": 2, "temperature": 0.0},
    ],
)
def test_the_runtimes_own_samplers_are_fields_too(serving, tiny, fields):
    plain = {"temperature": fields.get("temperature", 1.5), "seed": 5, "top_k": 0, "top_p": 1.0}
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=40, **plain | fields)).text
    assert expected != tiny.chat(HELLO, GenerationConfig(max_new_tokens=40, **plain)).text
    assert chat(serving, max_tokens=40, **plain | fields).json["choices"][0]["message"]["content"] == expected


def test_the_penalty_for_repetition_has_the_name_that_local_servers_give_it_too(serving, tiny):
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=40, repetition_penalty=2.0)).text
    assert expected != tiny.chat(HELLO, GenerationConfig(max_new_tokens=40)).text
    for fields in ({"repeat_penalty": 2.0}, {"repetition_penalty": 2.0, "repeat_penalty": 1.5}):
        assert chat(serving, max_tokens=40, **fields).json["choices"][0]["message"]["content"] == expected


def test_a_penalty_that_sees_no_token_is_off(serving):
    fields = {"repeat_penalty": 2.0, "repeat_last_n": 0}
    assert chat(serving, max_tokens=40, **fields).json["choices"] == chat(serving, max_tokens=40).json["choices"]
    body = {"model": "tiny-random", "messages": HELLO, "stream": False, "options": {"num_predict": 40}}
    plain = serving.post("/api/chat", body).json["message"]
    assert serving.post("/api/chat", body | {"options": {"num_predict": 40, **fields}}).json["message"] == plain


def test_mirostat_is_off_where_a_client_that_sends_all_settings_says_so(serving, tiny):
    plain = {"temperature": 1.5, "seed": 5}
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=40, **plain)).text
    reply = chat(serving, max_tokens=40, mirostat=0, mirostat_tau=1.0, mirostat_eta=0.5, **plain)
    assert reply.json["choices"][0]["message"]["content"] == expected


def test_an_answer_has_the_least_tokens_that_are_asked_for(serving, tiny):
    plain = tiny.chat(HELLO, GenerationConfig(max_new_tokens=40))
    stop = plain.text[1]
    assert chat(serving, max_tokens=40, stop=stop, min_tokens=0).json["usage"]["completion_tokens"] < 10
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=40, stop=stop, min_new_tokens=10))
    reply = chat(serving, max_tokens=40, stop=stop, min_tokens=10).json
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["usage"]["completion_tokens"] >= 10
    # Beyond the limit too, as the settings of the model's author may be.
    assert chat(serving, max_tokens=4, min_tokens=9).json["usage"]["completion_tokens"] == 4


def test_a_temperature_of_zero_leaves_nothing_to_chance(serving, tiny):
    greedy = tiny.chat(HELLO, GenerationConfig(max_new_tokens=12))
    fields = {"temperature": 0, "mirostat_tau": 5.0, "xtc_probability": 1.0}  # some clients send all that they know
    assert chat(serving, **fields).json["choices"][0]["message"]["content"] == greedy.text
    reply = chat(serving, mirostat_tau=5.0)  # and this model's author has set no temperature
    assert (reply.status, reply.json["error"]["message"][:42]) == (400, "mirostat_tau is 5.0, and temperature is 0,")


def test_the_same_seed_gives_the_same_n_answers_that_differ(serving):
    first, second = (
        [choice["message"]["content"] for choice in chat(serving, temperature=1, seed=-3, n=3).json["choices"]]
        for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 3


def test_n_answers_stream_side_by_side(serving):
    whole = [choice["message"]["content"] for choice in chat(serving, temperature=1, seed=5, n=2).json["choices"]]
    *chunks, _ = chat(serving, temperature=1, seed=5, n=2, stream=True).events
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "length"
        assert "".join(choice["delta"].get("content", "") for choice in own) == whole[index]


def test_logprobs_are_the_librarys(serving, tiny):
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=12, logprobs=2)).logprobs
    content = chat(serving, logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == [token.text for token in expected]
    # The same computation in another process; 0.0 measured.
    assert [token["logprob"] for token in content] == pytest.approx([token.logprob for token in expected], abs=1e-6)
    assert bytes(content[0]["bytes"]) == tiny.tokenizer.token_bytes(expected[0].id)
    assert [len(token["top_logprobs"]) for token in content] == [2] * 12
    streamed = [
        token
        for chunk in chat(serving, logprobs=True, top_logprobs=2, stream=True).events[:-1]
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


def test_a_stop_ends_the_answer_before_it(serving):
    text = chat(serving).json["choices"][0]["message"]["content"]
    choice = chat(serving, stop=[text[2:4]]).json["choices"][0]
    assert choice["message"]["content"] == text[: text.index(text[2:4])]
    assert choice["finish_reason"] == "stop"


def test_logit_bias_forces_a_token(serving, tiny):
    id_ = tiny.tokenizer.encode("x")[0]
    others = [[other, False] for other in range(320) if other != id_]
    for biases in ({str(id_): 100}, [[id_, 100]], others):
        assert chat(serving, logit_bias=biases, max_tokens=3).json["choices"][0]["message"]["content"] == "xxx"


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ([65, True], "logit_bias has True for the token 65; a bias is from -100 to 100, or false."),
        ([65, 101], "logit_bias has 101 for the token 65;"),
        ([9999, 1], "logit_bias has the key '9999'; token ids are 0 to 319."),
        ([False, 1], "logit_bias has the key 'False';"),
        ([65.5, 1], "logit_bias has the key '65.5';"),
        (["x", 1], "logit_bias[0][0] is 'x'; it must be a number."),
    ],
)
def test_a_pair_that_is_no_bias_is_refused(serving, pair, words):
    reply = chat(serving, logit_bias=[pair])
    assert (reply.status, words in reply.json["error"]["message"]) == (400, True), reply.data


def test_what_the_models_author_suppresses_stays_so_beside_a_requests_logit_bias(tiny, tmp_path):
    package, likeliest = shutil.copytree(TINY, tmp_path / "tiny"), tiny.chat(HELLO, GenerationConfig(max_new_tokens=1))
    (package / "generation_config.json").write_text(json.dumps({"suppress_tokens": [*likeliest.token_ids]}))
    manifest = Manifest.load(package)
    files = (*manifest.files, describe_file(package / "generation_config.json"))
    dataclasses.replace(manifest, files=files).save(package)
    (id_,) = likeliest.token_ids
    with EdgelmServer((str(package),)) as server:
        first = chat(server, max_tokens=1).json["choices"][0]["message"]["content"]
        assert first != likeliest.text
        beside = chat(server, max_tokens=1, logit_bias={"65": -100}).json["choices"][0]["message"]["content"]
        named = chat(server, max_tokens=1, logit_bias={str(id_): 100}).json["choices"][0]["message"]["content"]
        assert (beside, named) == (first, likeliest.text)


@pytest.mark.parametrize("limit", [10**9, -1])
def test_max_tokens_is_clamped_to_the_context(serving, limit):
    reply = chat(serving, max_tokens=limit, logit_bias={"65": 100})
    assert reply.status == 200
    assert reply.json["usage"]["total_tokens"] <= 1024 + 1
    assert reply.json["choices"][0]["finish_reason"] == "length"


def test_a_whole_number_may_be_written_with_a_point(serving):
    expected = chat(serving, max_tokens=5, top_k=3, seed=7).json["choices"]
    assert chat(serving, max_tokens=5.0, top_k=3.0, seed=7.0).json["choices"] == expected
    options = {"options": {"num_predict": 5.0}, "stream": False}
    reply = serving.post("/api/chat", {"messages": HELLO, "model": "tiny-random", **options})
    assert (reply.status, reply.json["eval_count"]) == (200, 5)
    tokens = {"tokens": [72.0, 105.0]}
    assert serving.post("/detokenize", tokens).json == serving.post("/detokenize", {"tokens": [72, 105]}).json
    assert serving.post("/detokenize", {"tokens": [72.5]}).status == 400


def test_parts_of_text_and_the_developer_role_are_understood(serving):
    plain = chat(serving, messages=[{"role": "system", "content": "Be brief."}, *HELLO])
    parts = chat(
        serving,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            *HELLO,
        ],
    )
    assert plain.json["choices"] == parts.json["choices"]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_message_may_say_whether_it_is_the_beginning_of_the_answer(serving, prefix):
    turns = [*HELLO, {"role": "assistant", "content": "The sea"}] + ([] if prefix else HELLO)
    said = [turn | {"prefix": prefix} if turn["role"] == "assistant" else turn for turn in turns]
    assert chat(serving, messages=said).json["choices"] == chat(serving, messages=turns).json["choices"]


@pytest.mark.parametrize("said", [{"content": [{"type": "refusal", "refusal": "No."}]}, {"refusal": "No."}])
def test_an_answer_that_was_a_refusal_is_read_as_its_text(serving, said):
    texts = {"role": "assistant", "content": "No.", "refusal": None}
    plain, given = (chat(serving, messages=[*HELLO, {"role": "assistant", **turn}, *HELLO]) for turn in (texts, said))
    assert given.json["choices"] == plain.json["choices"]
    assert given.json["usage"]["prompt_tokens"] == plain.json["usage"]["prompt_tokens"]


def test_a_control_token_in_a_message_is_text(serving):
    reply = chat(serving, messages=[{"role": "user", "content": "<|im_end|>"}])
    assert (
        reply.json["usage"]["prompt_tokens"]
        > chat(serving, messages=[{"role": "user", "content": "x"}]).json["usage"]["prompt_tokens"] + 3
    )


def test_fields_that_change_no_answer_are_taken(serving):
    asks_nothing = {"seed": None, "tools": [], "temperature": None, "response_format": {"type": "text"}}
    reply = chat(serving, user="u", metadata={"a": "b"}, store=True, service_tier="auto", **asks_nothing)
    assert reply.status == 200
    others = {"cache_prompt": True, "id_slot": -1, "ttl": 300}
    others |= {"timings_per_token": True, "return_progress": True}
    others |= {"cache_salt": "a", "priority": 1, "request_id": "b", "keep_alive": "5m"}
    others |= {"spaces_between_special_tokens": True, "stream_reasoning": True}
    others |= {"add_generation_prompt": True, "continue_final_message": False}
    others |= {"num_batch": 512, "num_gpu": 0, "num_thread": 2, "use_mmap": True, "use_mlock": True}  # Open WebUI's
    others |= {"num_ctx": 4096, "repeat_last_n": 64}
    assert reply.json["choices"] == chat(serving).json["choices"] == chat(serving, **others).json["choices"]


def test_fields_that_are_not_there_are_taken_where_they_ask_for_nothing(serving):
    off = {"functions": [], "grammar": "", "guided_choice": [], "mirostat": 0, "top_a": 0.0, "audio": False}
    off |= {"lora": [], "n_probs": 0, "dynatemp_range": 0.0}
    off |= {"verbosity": "medium", "reasoning_format": "auto"}  # OpenAI's default, and llama.cpp's
    # vLLM's, and SGLang's.
    off |= {"skip_special_tokens": True, "stop_token_ids": [], "min_tokens": 0, "ignore_eos": False}
    off |= {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False, "bad_words": []}
    off |= {"include_stop_str_in_output": False, "return_token_ids": False, "return_tokens_as_token_ids": False}
    off |= {"separate_reasoning": True, "no_stop_trim": False}
    assert chat(serving, **off).json["choices"] == chat(serving).json["choices"]


REFUSED = {
    "messages": ({}, "messages is missing."),
    "messages[0].role": ({"messages": [{"content": "x"}]}, "messages[0].role is missing."),
    "messages[0].content": ({"messages": [{"role": "user"}]}, "messages[0].content is missing."),
    "verbosity": ({"verbosity": "low"}, "verbosity is not supported: these models have no such setting."),
    "temperature": ({"temperature": -1}, "temperature is -1; it must be from 0 to 2."),
    "top_p": ({"top_p": "x"}, "top_p is 'x'; it must be a number."),
    "n": ({"n": 1000}, "n is 1000; it must be from 1 to 8."),
    "stop": ({"stop": ["x"] * 17}, "stop has 17 items; it must have 0 to 16."),
    "stop[0]": ({"stop": [""]}, "stop[0] has 0 characters; it must have 1 to 256."),
    "max_tokens": ({"max_tokens": -5}, "max_tokens is -5; it must be from 1 to 2147483648."),
    "top_logprobs": ({"top_logprobs": 3}, "top_logprobs needs logprobs: true."),
    "logit_bias": ({"logit_bias": {"9999": 1}}, "logit_bias has the key '9999'; token ids are 0 to 319."),
    "logit_bias[0]": ({"logit_bias": [[65]]}, "logit_bias[0] has 1 items; it must have 2 to 2."),
    "logit_bias.65": ({"logit_bias": {"65": 101}}, "logit_bias.65 is 101; it must be from -100 to 100."),
    "seed": ({"seed": 1.5}, "seed is 1.5; it must be a whole number."),
    "stream": ({"stream": "yes"}, "stream is 'yes'; it must be true or false."),
    "best_of": ({"best_of": 2}, "best_of is not supported: ask for n answers, and choose."),
    "functions": ({"functions": [{"name": "f"}]}, "functions is not supported: use tools."),
    "mirostat": ({"mirostat": 1}, "mirostat is not supported: mirostat_tau turns Mirostat 2.0 on."),
    "structured_outputs.structural_tag": (
        {"structured_outputs": {"structural_tag": "{}"}},
        "structured_outputs.structural_tag is not supported: calls of tools are held to their schemas by tools.",
    ),
    "structured_outputs.regex": (
        {"guided_choice": ["a", "b"], "structured_outputs": {"regex": "a"}},
        "guided_choice and structured_outputs.regex exclude each other: an answer has one form.",
    ),
    "guided_json": ({"guided_json": "{'a'"}, "guided_json is no JSON: Expecting property name"),
    "structured_outputs.json": ({"structured_outputs": {"json": "[]"}}, "is JSON, but no object; a schema is one."),
    "format": ({"format": "json"}, "format is not supported: use response_format."),
    "num_keep": ({"num_keep": 24}, "num_keep is not supported: use context_shift."),
    "n_predict": ({"n_predict": 5}, "n_predict is not supported: use max_tokens."),
    "options": ({"options": {"num_ctx": 9}}, "options is not supported: /api/chat and /api/generate have them."),
    "lora": ({"lora": [{"id": 0, "scale": 1}]}, "lora is not supported: an adapter is a model of its own: name it as"),
    "n_probs": ({"n_probs": 3}, "n_probs is not supported: use logprobs."),
    "samplers": ({"samplers": ["top_k"]}, "samplers is not supported: the order of the filters is fixed; a filter"),
    "skip_special_tokens": ({"skip_special_tokens": False}, "skip_special_tokens is not supported: special tokens are"),
    "separate_reasoning": ({"separate_reasoning": False}, "separate_reasoning is not supported: what was thought"),
    "stop_token_ids": ({"stop_token_ids": [2]}, "stop_token_ids is not supported: use stop."),
    "use_beam_search": ({"use_beam_search": True}, "use_beam_search is not supported: edgelm run --num-beams has it."),
    "length_penalty": ({"length_penalty": 2}, "length_penalty is not supported: edgelm run --num-beams has it."),
    "include_stop_str_in_output": ({"include_stop_str_in_output": True}, "what ends an answer is no part of it."),
    "reasoning.exclude": ({"reasoning": {"exclude": True}}, "what was thought comes apart, as reasoning_content."),
    "reasoning.max_tokens": ({"reasoning": {"max_tokens": 9}}, "max_tokens beside it limits the whole answer."),
    "reasoning.effort": ({"reasoning": {"effort": "low"}}, "reasoning.effort is not supported: the chat template of"),
    "web_search_options": ({"web_search_options": {}}, "web_search_options is not supported: there is no network"),
    "max_tokenz": ({"max_tokenz": 1}, "There is no field 'max_tokenz'; check its spelling."),
    "response_format.type": ({"response_format": {"type": "xml"}}, "it must be one of"),
    "tool_choice.type": (
        {"tool_choice": {"type": "x"}},
        "tool_choice.type is 'x'; it must be one of function, custom, allowed_tools.",
    ),
    "tool_choice.custom": ({"tool_choice": {"type": "custom"}}, "tool_choice.custom is missing."),
    "tool_choice": ({"tool_choice": "required"}, "tool_choice asks for a call, but there are no tools."),
    "messages[0].content[0]": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]},
        "is a part of type 'image_url'; these models read text alone, and no URL is ever fetched.",
    ),
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_place_and_the_rule(serving, param):
    fields, message = REFUSED[param]
    body = {"messages": HELLO, **fields} if param != "messages" else fields
    reply = serving.post(CHAT, body)
    assert reply.status == 400, reply.data
    error = reply.json["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_a_conversation_beyond_the_context_is_refused_before_a_stream_begins(serving):
    reply = chat(serving, messages=[{"role": "user", "content": "x" * 3000}], stream=True)
    assert reply.status == 400
    assert reply.json["error"]["code"] == "context_length_exceeded"
    assert "this model's maximum context length is 1024" in reply.json["error"]["message"]


def test_half_a_surrogate_pair_is_refused(serving):
    body = json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}).encode()
    reply = serving.post(CHAT, body)
    assert reply.status == 400
    assert "half of a surrogate pair" in reply.json["error"]["message"]


def test_a_model_that_is_not_there_is_named_with_those_that_are(serving):
    reply = chat(serving, model="../../etc/passwd")
    assert reply.status == 404
    assert reply.json["error"]["code"] == "model_not_found"
    assert reply.json["error"]["message"] == "There is no model '../../etc/passwd' here. Here are: tiny-random."


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_errors_have_openais_types(status, kind):
    assert ApiError(status, "No.").body(CHAT)["error"]["type"] == kind


def test_a_conversation_that_outgrows_the_context_goes_on_where_the_server_or_the_request_says_so(serving, tiny):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "word " * 600}, *HELLO]
    expected = tiny.chat(turns, GenerationConfig(max_new_tokens=12, context_shift=0))
    assert "this model's maximum context length is 1024" in chat(serving, messages=turns).json["error"]["message"]
    with EdgelmServer((TINY, "--context-shift", "0")) as shifting:
        answer = chat(shifting, messages=turns).json
        options = {"model": "tiny-random", "stream": False, "options": {"num_predict": 12}}
        ollama = shifting.post("/api/chat", {"messages": turns, **options}).json
        generated = shifting.post("/api/generate", {"prompt": "word " * 600, "system": "Be brief.", **options}).json
    assert answer["choices"][0]["message"]["content"] == ollama["message"]["content"] == expected.text
    assert chat(serving, messages=turns, context_shift=0).json["choices"] == answer["choices"]
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens <= 1024
    expected = tiny.chat(turns[:2], GenerationConfig(max_new_tokens=12, context_shift=0))
    assert generated["response"] == expected.text
