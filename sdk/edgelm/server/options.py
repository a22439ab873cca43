"""ServerOptions: where the server listens, whom it answers, and how much it takes on."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgelm.errors import ConfigError
from edgelm.runtime.session_options import SessionOptions

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s*]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?|\[[0-9A-Fa-f:]+\](:[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What one request and its connection may take; times are in seconds."""

    body_bytes: int = 1 << 20
    json_nesting: int = 64
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_stall_seconds: float = 30.0
    request_seconds: float = 600.0
    connections: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} is {value!r}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Configure the server.

    api_keys: whoever has one of them is answered; without any, whoever reaches the address is. allowed_hosts: values of
    the Host header, besides the address itself. cors_origins: web pages' origins that may call. keep_alive: seconds
    after which an unused model is unloaded, None for never. runtime: of every model. max_batch: answers computed at
    once, of one model. max_queue: requests that may wait besides. speculation, context_shift: as in GenerationConfig,
    for every request (models with linear attention or Mamba 2 get no guesses).

    adapters: their names (None: as they call themselves) and folders, each offered beside its package.

    Raises:
        ConfigError: a value is out of range, or an address that others reach has no key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    keep_alive: float | None = 300.0
    runtime: SessionOptions = field(default_factory=SessionOptions)
    max_batch: int = 8
    max_queue: int = 64
    adapters: tuple[tuple[str | None, Path], ...] = ()
    speculation: Literal["prompt_lookup"] | None = None
    context_shift: int | None = None
    limits: RequestLimits = RequestLimits()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port!r}; it must be a number from 0 to 65535.")
        # An address of IPv6 has two colons or more, and brackets in a URL alone.
        if not self.host or any(mark in self.host for mark in "/[]") or self.host.count(":") == 1:
            raise ConfigError(f"host is {self.host!r}; it must be an address alone. The port is an option of its own.")
        if self.keep_alive is not None and not self.keep_alive >= 0:
            raise ConfigError(f"keep_alive is {self.keep_alive!r}; it must be 0 or more seconds.")
        for key in self.api_keys:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("An API key must have 8 or more printable ASCII characters and no space.")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"The origin {origin!r} is none; write one as http://localhost:3000, without a path.")
        for name in self.allowed_hosts:
            if not _HOST_NAME.fullmatch(name):
                raise ConfigError(f"The host {name!r} is none; write one as chat.example.org or localhost:9000.")
        if not self.api_keys and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} is reached from other machines, so it needs a key: set EDGELM_API_KEY or give "
                "--api-key-file. To stay on this machine: --host 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
