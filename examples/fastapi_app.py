"""A model in a FastAPI app, many users at once: python examples/fastapi_app.py [MODEL] [PORT]

Then: curl -N "http://127.0.0.1:8000/answer?question=What+is+a+wave"
"""

import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

import edgelm

arguments = dict(enumerate(sys.argv))
model = edgelm.load(arguments.get(1, "smollm2-135m-instruct"))
engine = edgelm.Engine(model)  # its own thread computes all requests together; the event loop stays free
config = edgelm.GenerationConfig(max_new_tokens=200)
app = FastAPI()


@app.get("/answer")
async def answer(question: str) -> StreamingResponse:
    try:
        generation = engine.submit_chat([{"role": "user", "content": question}], config)
    except edgelm.QueueFullError as error:
        raise HTTPException(429, str(error)) from error

    async def text() -> AsyncIterator[str]:
        try:
            async for chunk in generation:
                yield chunk.text
        finally:
            generation.cancel()  # the client may have left

    return StreamingResponse(text(), media_type="text/plain")


if __name__ == "__main__":
    uvicorn.run(app, port=int(arguments.get(2, 8000)))
