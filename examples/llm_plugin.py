"""edgelm in the command `llm`: register this module as a plugin, or run it: python examples/llm_plugin.py [MODEL]

As a package of its own, its pyproject.toml needs:  [project.entry-points.llm]  edgelm = "llm_plugin"
"""

import sys
from collections.abc import Iterator

import llm

import edgelm
from edgelm.library.library import Library


class LocalModel(llm.Model):
    can_stream = True

    def __init__(self, name: str) -> None:
        self.model_id, self._name, self._model = f"edgelm/{name}", name, None

    def execute(self, prompt, stream, response, conversation) -> Iterator[str]:
        self._model = self._model or edgelm.load(self._name)
        answered = conversation.responses if conversation else []
        said = [*(past.prompt.system for past in answered), prompt.system]  # `llm chat` says it once
        messages = [{"role": "system", "content": text} for text in said if text][-1:]
        for past in answered:
            messages += [{"role": "user", "content": past.prompt.prompt}, {"role": "assistant", "content": past.text()}]
        messages += [{"role": "user", "content": prompt.prompt}]
        for chunk in self._model.stream_chat(messages, edgelm.GenerationConfig(max_new_tokens=1024)):
            yield chunk.text


@llm.hookimpl
def register_models(register) -> None:
    for name in Library().packages():
        register(LocalModel(name))


if __name__ == "__main__":
    print(LocalModel(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct").prompt("What is a wave?").text())
