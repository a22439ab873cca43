"""A chat template that is told whether to think, and how much, as those of Qwen3, SmolLM3 and gpt-oss are."""

from __future__ import annotations

from edgelm.language_model import LanguageModel
from edgelm.testing import scripted_model
from edgelm.text.chat_template import ChatTemplate

THINKING = """\
<|im_start|>system
Thinking: {{ 'on' if enable_thinking | default(true) else 'off' }}, effort: {{ reasoning_effort | default('medium') }}\
<|im_end|>
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""


def thinking_model(answer: str = "The sea is blue.") -> LanguageModel:
    """Return a scripted model whose template reads the variables."""
    model = scripted_model(answer)
    model.chat_template = ChatTemplate(THINKING)
    return model


def system_message(model: LanguageModel, ids: list[int]) -> str:
    """Return what the template said first in a prompt."""
    text = model.tokenizer.decode(ids, skip_control_tokens=False)
    return text.removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0]
