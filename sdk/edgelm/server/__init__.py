"""The local server: OpenAI's and Ollama's protocols over the engine, on starlette and uvicorn (the extra `serve`)."""
