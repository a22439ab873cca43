"""POST /tokenize and /detokenize, GET /tokenizer_info: the model's tokenizer, as evaluation tools ask for it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from edgelm.errors import TokenizerError
from edgelm.server import chat_messages
from edgelm.server.endpoint import Call
from edgelm.server.schema import BOOLEAN, TEXT, listing, record, whole
from edgelm.server.sse import JsonAnswer

MAX_TOKENS = 1 << 20

TOKENIZE = record(
    {
        "model": TEXT,
        "prompt": TEXT,
        "messages": chat_messages.CHAT["messages"],
        **chat_messages.TEMPLATE_VARIABLES,
        "add_special_tokens": BOOLEAN,
        "return_token_strs": BOOLEAN,
    },
    ignored=("add_generation_prompt", "continue_final_message"),
    refused={"content": "use prompt."},  # llama.cpp's name
)
DETOKENIZE = record({"model": TEXT, "tokens": listing(whole(0), most=MAX_TOKENS)}, required=("tokens",))


async def tokenize(call: Call) -> Response:
    """Encode a text, or a conversation up to where its answer begins."""
    body = call.body
    with await call.model(body.get("model")) as served:
        model = served.model

        def answer() -> JsonAnswer:
            if "messages" in body:
                variables = chat_messages.template_variables(model, body)
                ids = model.encode_chat(chat_messages.messages_of(body), template_variables=variables)
            else:
                ids = model.tokenizer.encode(body.get("prompt", ""))
            counted: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": served.context_length}
            if body.get("return_token_strs"):
                counted["token_strs"] = [model.tokenizer.token_text(id_) for id_ in ids]
            return JsonAnswer(counted)

        return await call.in_thread(answer)


async def detokenize(call: Call) -> Response:
    """Decode token ids; control tokens are written out."""
    with await call.model(call.body.get("model")) as served:
        tokenizer = served.model.tokenizer
        for id_ in call.body["tokens"]:
            if id_ >= served.model.config.vocab_size:
                raise TokenizerError(
                    f"There is no token {id_}; the model's are 0 to {served.model.config.vocab_size - 1}."
                )
        text = await call.in_thread(tokenizer.decode, call.body["tokens"], skip_control_tokens=False)
        return JsonAnswer({"prompt": text})


async def tokenizer_info(call: Call) -> Response:
    """Describe the tokenizer; the query parameter `model` names the model where there are several."""
    with await call.model(call.request.query_params.get("model")) as served:
        model = served.model
        config, tokenizer = model.config, model.tokenizer

        def text_of(id_: int | None) -> str | None:
            return None if id_ is None else tokenizer.token_text(id_)

        eos_id = config.eos_token_ids[0] if config.eos_token_ids else None
        return JsonAnswer(
            {
                "model": served.name,
                "tokenizer_class": "Tokenizer",
                "vocab_size": tokenizer.vocab_size,
                "bos_token": text_of(config.bos_token_id),
                "bos_token_id": config.bos_token_id,
                "eos_token": text_of(eos_id),
                "eos_token_id": eos_id,
                "pad_token": None,
                "chat_template": None if model.chat_template is None else model.chat_template.source,
                "max_model_len": served.context_length,
            }
        )
