"""The client that measures servers, on `edgelm serve` with the tiny model."""

from __future__ import annotations

import click
import pytest
from edgelm_server import EdgelmServer

from servers import Server, first_model


def test_a_server_is_timed_only_where_it_gives_every_token() -> None:
    with EdgelmServer() as edgelm_server:
        model = first_model(edgelm_server.port)
        assert model is not None
        server = Server(port=edgelm_server.port, model=model)
        assert server.rate([[5, 6, 7], [8, 9, 10]], 6) > 0
        with pytest.raises(click.ClickException, match=r"no-such answered 404, and gave {} of 6 tokens"):
            Server(port=edgelm_server.port, model="no-such").complete([5, 6, 7], 6)
