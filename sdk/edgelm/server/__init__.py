"""The local server: OpenAI's, Anthropic's and Ollama's protocols over the engine, on starlette (the extra `serve`)."""
