"""`edgelm serve`: OpenAI's, Anthropic's and Ollama's protocols on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import click

from edgelm.cli.adapter_options import adapters_option
from edgelm.cli.generation_options import complete_model, context_shift_option, runtime_options
from edgelm.cli.wrong_usage import wrong_usage
from edgelm.errors import ConfigError
from edgelm.files.folders import data_folder
from edgelm.generation_config import PROMPT_LOOKUP
from edgelm.library.catalogue import CATALOGUE
from edgelm.runtime.session_options import SessionOptions
from edgelm.server.options import RequestLimits, ServerOptions, is_loopback

_DEFAULTS = ServerOptions()
KEY_VARIABLE = "EDGELM_API_KEY"


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option("--host", default=_DEFAULTS.host, show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_DEFAULTS.port, show_default=True, help="0: any free one."
)
@click.option(
    "--api-key",
    metavar="KEY",
    multiple=True,
    help="Answer only callers that send this key. Others on this machine can see it: a file hides it.",
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with a key on each line, of 8 or more characters.",
)
@click.option(
    "--allowed-host", metavar="NAME", multiple=True, help="A Host that requests may name besides, with its port."
)
@click.option("--cors-origin", metavar="ORIGIN", multiple=True, help="Let web pages of this origin call.")
@click.option(
    "--keep-alive",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=_DEFAULTS.keep_alive,
    show_default=True,
    help="Unload a model that was not used for so long.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    default=_DEFAULTS.max_batch,
    show_default=True,
    help="Answers of one model computed at once.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=0),
    metavar="N",
    default=_DEFAULTS.max_queue,
    show_default=True,
    help="Requests that may wait for a place; more get status 429.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=_DEFAULTS.limits.request_seconds,
    show_default=True,
    help="End an answer that takes longer.",
)
@click.option("--speculation", type=click.Choice((PROMPT_LOOKUP,)), help="Guess tokens ahead where that is faster.")
@context_shift_option
@adapters_option
@runtime_options
@click.option("--quiet", is_flag=True, help="Show errors only, not each request.")
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    allowed_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    keep_alive: float,
    batch: int,
    queue: int,
    timeout: float,
    speculation: Literal["prompt_lookup"] | None,
    context_shift: int | None,
    adapters: tuple[tuple[str | None, Path], ...],
    quiet: bool,
    runtime: SessionOptions,
) -> None:
    """Serve models to programs and browsers: OpenAI's, Anthropic's and Ollama's protocols, and a page to chat.

    MODEL is a name from the library or a folder; without any, the whole library is served. A model is loaded when it is
    first asked for. An adapter is offered as a model of its own, by its name. The first Ctrl-C, SIGTERM or SIGHUP lets
    running answers end, the second stops at once; after SIGTERM the exit code is 0, or 143 where it came before the
    server listened.

    \b
    Examples:
      edgelm serve
      edgelm serve smollm2-135m-instruct --port 9000
      edgelm serve package/ --adapter shop=adapter/
      EDGELM_API_KEY=$(openssl rand -hex 16) edgelm serve --host 0.0.0.0
      curl localhost:8080/v1/models
      curl localhost:8080/v1/completions -d '{"model": "smollm2-135m-instruct", "prompt": "The sea"}'
      OPENAI_BASE_URL=http://localhost:8080/v1 OPENAI_API_KEY=none python program.py
    """
    of_environment = os.environ.get(KEY_VARIABLE)
    with wrong_usage():
        options = ServerOptions(
            host=host,
            port=port,
            api_keys=(*api_key, *([of_environment] if of_environment else []), *_keys_of_file(api_key_file)),
            allowed_hosts=allowed_host,
            cors_origins=cors_origin,
            keep_alive=keep_alive,
            max_batch=batch,
            max_queue=queue,
            limits=RequestLimits(request_seconds=timeout),
            speculation=speculation,
            context_shift=context_shift,
            adapters=adapters,
            runtime=runtime,
        )
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.ERROR if quiet else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    # Imported here, so that --help needs neither starlette nor numpy.
    from edgelm.server.process import serve as serve_until_signal

    ended_by = serve_until_signal(models, options, partial(_greet, options))
    # Ctrl-Break is what a program ends another one by on Windows, as by SIGTERM elsewhere.
    if ended_by not in (None, signal.SIGTERM, getattr(signal, "SIGBREAK", signal.SIGTERM)):
        raise SystemExit(128 + ended_by)


def _greet(options: ServerOptions, url: str, names: Sequence[str]) -> None:
    """Say where the server is to be found; it goes on where that cannot be written, as on a full disk."""
    who = "whoever has its key" if options.api_keys else "everybody on this machine"
    first = next(iter(CATALOGUE))
    none = f"No model is in {data_folder()} yet. Fetch one, and it is offered at once: edgelm pull {first}"
    with contextlib.suppress(OSError):
        click.echo(f"Listening at {url} for {who}.", err=True)
        click.echo(f"Models: {', '.join(names)}" if names else none, err=True)
        click.echo(f"A page to chat: {url} · OpenAI's base URL: {url}/v1 · Anthropic's and Ollama's: {url}", err=True)
        if options.api_keys and not is_loopback(options.host):
            click.echo("The key and the answers travel unencrypted; put a proxy with TLS before strangers.", err=True)


def _keys_of_file(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read the keys in {path}: {error}.") from error
    keys = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    for number, key in keys.items():
        try:
            ServerOptions(api_keys=(key,))
        except ConfigError as error:
            raise ConfigError(f"{path}:{number}: {error}") from error
    if not keys:
        raise ConfigError(f"There is no key in {path}; write one on each line.")
    return tuple(keys.values())
