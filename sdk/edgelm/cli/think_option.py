"""The option --think: whether a model thinks before it answers, where its chat template can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgelm.errors import ConfigError

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

think_option = click.option(
    "--think/--no-think",
    default=None,
    help="Let the model think before it answers, or not.  [default: as its chat template has it]",
)


def think_variables(model: LanguageModel, think: bool | None) -> dict[str, object]:
    """Return the variables that tell a model's chat template to think, or not to; None: nothing is told.

    Raises:
        ConfigError: the template reads none of them.
    """
    # Imported here, so that --help does not need jinja2.
    from edgelm.text.thinking import SWITCHES, switches_thinking, thinking_variables

    if think is None:
        return {}
    if not switches_thinking(model.chat_template):
        raise ConfigError(
            f"{model.name} cannot be told whether to think: its chat template does not read {' or '.join(SWITCHES)}. "
            "Leave --think and --no-think out, or /set think null."
        )
    return thinking_variables(think)
