"""ServerOptions, and the model pool where memory is short."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import re
import shutil
import weakref

import pytest
from edgelm_server import TINY

from edgelm import loading
from edgelm.errors import ConfigError, EdgeLMError, MissingExtraError, OutOfMemoryError, PackageError, QueueFullError
from edgelm.files.atomic import replace_folder
from edgelm.library.library import Library
from edgelm.runtime.session_options import SessionOptions
from edgelm.server import model_pool
from edgelm.server.api_error import ApiError, as_api_error
from edgelm.server.model_pool import ModelPool
from edgelm.server.options import RequestLimits, ServerOptions


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"port": 65536}, "port is 65536; it must be a number from 0 to 65535."),
        ({"port": -1}, "port is -1; it must be a number from 0 to 65535."),
        (
            {"host": "127.0.0.1:9000"},
            "host is '127.0.0.1:9000'; it must be an address alone. The port is an option of its",
        ),
        ({"host": "http://localhost"}, "host is 'http://localhost'; it must be an address alone."),
        ({"host": "[::1]"}, "host is '[::1]'; it must be an address alone."),
        ({"keep_alive": -1.0}, "keep_alive is -1.0; it must be 0 or more seconds."),
        ({"keep_alive": math.nan}, "keep_alive is nan; it must be 0 or more seconds."),
        ({"api_keys": ("has a space",)}, "An API key must have 8 or more printable ASCII characters and no space."),
        ({"api_keys": ("schlüssel",)}, "An API key must have 8 or more printable ASCII characters and no space."),
        ({"api_keys": ("has\ta\ttab",)}, "An API key must have 8 or more printable ASCII characters and no space."),
        ({"host": "::"}, ":: is reached from other machines, so it needs a key"),
        ({"host": "my-laptop"}, "my-laptop is reached from other machines"),
        ({"cors_origins": ("http://x/path",)}, "The origin 'http://x/path' is none"),
    ],
)
def test_what_cannot_be_is_refused(fields, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        ServerOptions(**fields)


def test_the_defaults_are_those_that_security_md_names():
    limits, options = RequestLimits(), ServerOptions()
    assert (limits.body_bytes, limits.json_nesting) == (1 << 20, 64)
    assert (limits.header_seconds, limits.body_seconds, limits.write_stall_seconds) == (10, 30, 30)
    assert limits.request_seconds == 600
    assert (options.host, options.api_keys, options.cors_origins) == ("127.0.0.1", (), ())


def test_models_are_loaded_with_the_session_options_of_the_server(monkeypatch):
    runtime = SessionOptions(threads=2, provider_options={"a": "b"}, prefill_graph=False)
    loaded = []

    def load(_folder, options):
        loaded.append(options)
        raise PackageError("once is enough")

    monkeypatch.setattr(loading, "load", load)
    with pytest.raises(PackageError):
        model_pool._load(TINY, {}, ServerOptions(runtime=runtime))
    assert loaded == [runtime]


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="body_seconds is 0; it must be above 0"):
        RequestLimits(body_seconds=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_key(host):
    assert ServerOptions(host=host).api_keys == ()


def test_where_memory_is_short_the_longest_unused_model_goes_and_busy_ones_stay(own_library, monkeypatch):
    for name in ("first", "second", "third"):
        shutil.copytree(TINY, own_library / "models" / name)
    room = [10**9]
    monkeypatch.setattr(model_pool, "available_memory", lambda: room[0] - 10**6 * len(pool.loaded()))
    monkeypatch.setattr(model_pool, "memory_to_load", lambda *_, **__: 8 * 10**6)

    async def use() -> None:
        first = await pool.acquire("first")
        (await pool.acquire("second")).release()
        room[0] = 2 * 10**6 + 10**7  # for two models, and the third with its answers: one has to go
        room[0] -= 1
        (await pool.acquire("third")).release()
        assert [model.name for model in pool.loaded()] == ["first", "third"]
        room[0] = 0
        with pytest.raises(ApiError, match="There is no memory for this model") as caught:
            await pool.acquire("second")
        assert (caught.value.status, caught.value.code) == (503, "out_of_memory")
        assert caught.value.headers == {"Retry-After": "1"}
        assert [model.name for model in pool.loaded()] == ["first"]
        first.release()

    async def main() -> None:
        async with pool.running():
            await use()

    pool = ModelPool((), ServerOptions())
    asyncio.run(main())


@pytest.mark.usefixtures("no_collection")  # what is freed is freed by itself, as in an idle server
def test_what_a_model_had_is_free_when_memory_for_another_is_looked_for(own_library, monkeypatch):
    for name in ("first", "second"):
        shutil.copytree(TINY, own_library / "models" / name)

    async def main() -> None:
        async with pool.running():
            first = await pool.acquire("first")
            session = weakref.ref(first.model.session)
            monkeypatch.setattr(model_pool, "available_memory", lambda: 10**9 if session() is None else 0)
            first.release()
            del first
            (await pool.acquire("second")).release()

    async def at_once(function, *arguments):
        return function(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", at_once)  # a thread has what it returned for a moment longer
    pool = ModelPool((), ServerOptions())
    asyncio.run(main())


@pytest.mark.usefixtures("no_collection")
def test_the_sweep_keeps_nothing_of_a_model_that_it_has_unloaded():
    async def main() -> None:
        async with pool.running():
            loaded = await pool.acquire("tiny-random")
            session = weakref.ref(loaded.model.session)
            loaded.release()
            del loaded
            for _ in range(1000):
                if session() is None:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("the model is still in memory")

    pool = ModelPool((TINY,), ServerOptions(keep_alive=0.02))
    asyncio.run(main())


def test_a_model_that_is_unloaded_before_its_first_user_is_back_is_loaded_again():
    """With a short --keep-alive, the sweep may come between the end of the loading and the one who waits for it."""

    async def main() -> None:
        load, unload_after = pool._load, [True]

        async def unloading(name, folder):
            await load(name, folder)
            if unload_after.pop() if unload_after else False:
                await pool.unload(name)

        pool._load = unloading
        async with pool.running():
            loaded = await pool.acquire("tiny-random")
            assert loaded.users == 1
            assert pool.loaded() == [loaded]
            assert loaded.engine.submit("x").cancel() is None  # it is not closed
            loaded.release()

    pool = ModelPool((TINY,), ServerOptions())
    asyncio.run(main())


def test_two_that_unload_one_model_at_once_do_not_end_the_sweep():
    async def main() -> None:
        async with pool.running():
            (await pool.acquire("tiny-random")).release()
            await asyncio.gather(pool._unload("tiny-random"), pool._unload("tiny-random"))
            assert pool.loaded() == []

    pool = ModelPool((TINY,), ServerOptions())
    asyncio.run(main())


def test_a_model_in_use_stays_and_goes_when_its_last_user_has_left():
    async def main() -> None:
        async with pool.running():
            loaded = await pool.acquire("tiny-random")
            await pool.acquire("tiny-random")
            await pool.unload("tiny-random")
            loaded.release()
            loaded.last_used = 0.0
            await asyncio.sleep(0.1)  # the sweep comes every 10 ms
            assert pool.loaded() == [loaded]
            loaded.release()
            assert loaded.last_used > 0
            while pool.loaded():
                await asyncio.sleep(0.01)

    pool = ModelPool((TINY,), ServerOptions(keep_alive=0.02))
    asyncio.run(main())


def test_at_the_end_every_model_is_unloaded_and_the_sweep_is_over():
    async def main() -> None:
        async with pool.running():
            await pool.acquire("tiny-random")
        await asyncio.sleep(0)
        assert pool.loaded() == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    pool = ModelPool((TINY,), ServerOptions())
    asyncio.run(main())


def test_who_leaves_while_a_model_is_loaded_does_not_take_it_from_others():
    async def main() -> None:
        async with pool.running():
            leaving, staying = (asyncio.create_task(pool.acquire("tiny-random")) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).users == 1

    pool = ModelPool((TINY,), ServerOptions())
    asyncio.run(main())


def test_a_package_that_was_replaced_is_loaded_by_the_next_request_and_who_has_the_old_one_ends_with_it(own_library):
    folder = own_library / "models" / "first"
    shutil.copytree(TINY, folder)

    async def main() -> None:
        async with pool.running():
            old = await pool.acquire("first")
            old.keep_for(100)
            with replace_folder(folder) as staging:
                shutil.copytree(TINY, staging, dirs_exist_ok=True)
                dataclasses.replace(old.model.manifest, precision="another").save(staging)
            assert pool.loaded() == []  # what is described is the new package
            new = await pool.acquire("first")
            assert new.model.manifest.precision == pool.package("first").manifest.precision == "another"
            assert new.keep_alive == 100
            old.engine.submit("x").cancel()
            old.release()
            assert await pool.acquire("first") is new
            with pytest.raises(EdgeLMError, match="closed"):
                old.engine.submit("x")
            Library().remove("first")
            assert pool.loaded() == []
            for _ in range(2):
                new.release()
            while pool._replaced or pool._loaded:  # the sweep comes every 10 ms
                await asyncio.sleep(0.01)
            await pool.unload("first")  # nobody wants it kept any more
            shutil.copytree(TINY, folder)
            assert (await pool.acquire("first")).keep_alive == 0.02

    pool = ModelPool((), ServerOptions(keep_alive=0.02))
    asyncio.run(main())


def test_a_loading_that_is_over_is_none_that_a_request_waits_for():
    # Where the package was replaced meanwhile, who found it would look for the model without end, and without giving
    # way to anybody.
    async def main():
        async with pool.running():
            asking = asyncio.create_task(pool.acquire("tiny-random"))
            while not asking.done():
                assert not any(loading.done() for loading in pool._loading.values())
                await asyncio.sleep(0)
            asking.result().release()

    pool = ModelPool((TINY,), ServerOptions())
    asyncio.run(main())


def test_a_package_that_may_not_be_read_hides_no_others_and_says_why(own_library, monkeypatch):
    for name in ("first", "second"):
        shutil.copytree(TINY, own_library / "models" / name)
    closed = f"{own_library / 'models' / 'second'}/"

    def closing(look):
        def refusing(path, *arguments, **options):
            if os.fspath(path).startswith(closed):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return look(path, *arguments, **options)

        return refusing

    for name in ("stat", "lstat", "open"):
        monkeypatch.setattr(os, name, closing(getattr(os, name)))
    assert Library().latest() == "first"
    pool = ModelPool((), ServerOptions())
    assert list(pool.folders()) == ["first", "second"]
    assert list(pool.packages()) == ["first"]
    with pytest.raises(ApiError, match="The model 'second' cannot be loaded; the server's log says why"):
        asyncio.run(pool.acquire("second"))
    with pytest.raises(PackageError, match=rf"{re.escape(closed)}edgelm\.json cannot be read: .*Permission denied"):
        pool.package("second")


def test_models_are_loaded_one_after_the_other(own_library, monkeypatch):
    """Each looks for memory that the one before has taken."""
    for name in ("first", "second"):
        shutil.copytree(TINY, own_library / "models" / name)
    load, together = model_pool._load, []

    def counting(*arguments):
        together.append(len(together) - len(pool.loaded()))
        return load(*arguments)

    async def main() -> None:
        async with pool.running():
            await asyncio.gather(pool.acquire("first"), pool.acquire("second"))

    monkeypatch.setattr(model_pool, "_load", counting)
    pool = ModelPool((), ServerOptions())
    asyncio.run(main())
    assert together == [0, 0]


def test_errors_that_name_this_machine_are_kept_from_clients():
    assert str(as_api_error(OSError("/secret"))) == "The server failed at this request; its log says why."
    assert as_api_error(QueueFullError("x")).status == 429
    no_memory = as_api_error(OutOfMemoryError("/secret"))
    assert (no_memory.status, str(no_memory)[:36]) == (503, "There is no memory for this request ")
    assert no_memory.headers == {"Retry-After": "1"}
    assert as_api_error(MissingExtraError('pip install "edgelm[x]"')).status == 400
