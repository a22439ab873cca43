"""A model in a FastAPI app, many users at once: uvicorn --app-dir examples fastapi_app:app

Then: curl -N "http://127.0.0.1:8000/answer?question=What+is+a+wave". MODEL in the environment names another."""

import contextlib
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

import edgelm


@contextlib.asynccontextmanager  # loaded where the app runs, not where it is imported: workers may be forked between
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    model = edgelm.load(os.environ.get("MODEL", "smollm2-135m-instruct"))
    with edgelm.Engine(model) as app.state.engine:  # its own thread computes all requests; the event loop stays free
        yield


app = FastAPI(lifespan=lifespan)
config = edgelm.GenerationConfig(max_new_tokens=200)


@app.get("/answer")
async def answer(question: str) -> StreamingResponse:
    try:
        generation = app.state.engine.submit_chat([{"role": "user", "content": question}], config)
    except edgelm.QueueFullError as error:
        raise HTTPException(429, str(error)) from error

    async def text() -> AsyncIterator[str]:
        try:
            async for chunk in generation:
                yield chunk.text
        finally:
            generation.cancel()  # the client may have left

    return StreamingResponse(text(), media_type="text/plain")
