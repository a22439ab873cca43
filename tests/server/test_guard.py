"""Who may call: the Host, the Origin and the key of a request, and what CORS lets a page read."""

from __future__ import annotations

import pytest
from edgelm_server import CHAT, TINY, EdgelmServer, read_all
from starlette.datastructures import Headers
from waiting import wait_for

from edgelm.server.api_error import ApiError
from edgelm.server.guard import check_host
from edgelm.server.options import ServerOptions

KEY = "secret-key-of-a-test"


@pytest.fixture(scope="module")
def keyed():
    arguments = (TINY, "--quiet", "--cors-origin", "http://app.example", "--allowed-host", "chat.example.org")
    with EdgelmServer(arguments, environment={"EDGELM_API_KEY": KEY}) as server:
        yield server


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_the_names_of_this_machine_are_answered(serving, host):
    assert serving.get("/health", Host=host.format(port=serving.port)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",  # a browser leaves out the port only where it is 80
        "localhost",
        "127.0.0.1:1",
        "127.0.0.1:{port}.evil.example",
        "localhost.evil.example:{port}",
        "127.0.0.2:{port}",
        "2130706433:{port}",
        "0.0.0.0:{port}",
        "user@127.0.0.1:{port}",
        "",
    ],
)
def test_a_host_that_is_another_name_is_refused_before_anything_else(serving, host):
    reply = serving.post(CHAT, b"not even JSON", Host=host.format(port=serving.port))
    assert reply.status == 403
    assert reply.json["error"]["code"] == "host_not_allowed"
    assert "--allowed-host" in reply.json["error"]["message"]
    wait_for(lambda: reply.json["error"]["message"] in "".join(serving.log))  # for those whose program hides it


def test_two_hosts_are_refused(serving):
    host = f"Host: 127.0.0.1:{serving.port}\r\n"
    connection = serving.send(f"GET /health HTTP/1.1\r\n{host}{host}\r\n".encode())
    assert connection.recv(99).split()[1] in (b"400", b"403")
    doubled = Headers(raw=[(b"host", b"127.0.0.1:8080")] * 2)
    with pytest.raises(ApiError, match="The request has 2 Host headers; send one"):  # should uvicorn pass it on
        check_host(doubled, ("127.0.0.1", 8080), ServerOptions())


def test_a_whole_url_in_place_of_a_path_is_answered_where_its_host_is_this_server(serving):
    url = f"{serving.url}/tokenizer_info?model=tiny%2Drandom".replace("http", "HTTP")
    connection = serving.send(f"GET {url} HTTP/1.1\r\nHost: proxy.example\r\n\r\n".encode())
    assert connection.recv(99).startswith(b"HTTP/1.1 200")
    bare = serving.send(f"GET {serving.url} HTTP/1.1\r\nHost: proxy.example\r\n\r\n".encode())
    assert b"text/html" in bare.recv(999)


@pytest.mark.parametrize("url", ["http://evil.example/health", "http://user@{host}/health", "http:///health"])
def test_a_whole_url_of_another_host_is_refused_whatever_the_host_header_says(serving, url):
    host = f"{serving.host}:{serving.port}"
    connection = serving.send(f"GET {url.format(host=host)} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert connection.recv(99).startswith(b"HTTP/1.1 403")


def test_an_old_request_without_a_host_is_refused(serving):
    connection = serving.send(b"GET /health HTTP/1.0\r\n\r\n")
    reply = read_all(connection)
    assert reply.split()[1] == b"403"
    assert b"The request has no Host headers; send one." in reply


def test_the_port_may_be_left_out_where_it_is_https_own():
    headers = Headers({"host": "127.0.0.1"})
    assert check_host(headers, ("127.0.0.1", 80), ServerOptions()) == "127.0.0.1"
    with pytest.raises(ApiError, match="is not this server's"):
        check_host(headers, ("127.0.0.1", 8080), ServerOptions())


def test_the_address_that_a_request_came_in_at_is_a_name_too():
    options = ServerOptions(host="0.0.0.0", api_keys=(KEY,))
    assert check_host(Headers({"host": "192.168.1.7:8080"}), ("192.168.1.7", 8080), options)
    with pytest.raises(ApiError):
        check_host(Headers({"host": "192.168.1.8:8080"}), ("192.168.1.7", 8080), options)


def test_who_comes_by_ipv4_to_a_server_of_both_is_answered():
    options = ServerOptions(host="::", api_keys=(KEY,))
    for host, ip in (("192.168.1.7", "::ffff:192.168.1.7"), ("[fe80::7]", "fe80::7")):
        assert check_host(Headers({"host": f"{host}:8080"}), (ip, 8080), options)
    with pytest.raises(ApiError):
        check_host(Headers({"host": "192.168.1.8:8080"}), ("::ffff:192.168.1.7", 8080), options)


def test_an_allowed_host_is_answered_as_it_was_written(keyed):
    assert keyed.get("/health", Host="chat.example.org").status == 200
    assert keyed.get("/health", Host="chat.example.org:99").status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1"])
def test_a_page_of_another_site_is_refused(serving, origin):
    reply = serving.post("/v1/completions", {"prompt": "x"}, Origin=origin.format(port=serving.port))
    assert reply.status == 403
    assert reply.json["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(("mode", "dest"), [("no-cors", "image"), ("no-cors", "script"), ("navigate", "iframe")])
def test_what_a_page_of_another_site_shows_is_refused_though_it_has_no_origin(serving, site, mode, dest):
    fetched = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": dest}
    reply = serving.get("/tokenizer_info", **fetched)
    assert (reply.status, reply.json["error"]["code"]) == (403, "site_not_allowed")
    for path in ("/", "/health"):  # a link may lead to the page, and asking for these does nothing
        assert serving.get(path, **fetched).status == 200


def test_our_page_behind_a_proxy_that_speaks_tls_is_answered(keyed):
    sent = {"Host": "chat.example.org", "Authorization": f"Bearer {KEY}"}
    assert keyed.get("/v1/models", Origin="https://chat.example.org", **sent).status == 200
    assert keyed.get("/v1/models", Origin="http://chat.example.org", **sent).status == 200
    assert keyed.get("/v1/models", Origin="https://other.example.org", **sent).status == 403


@pytest.mark.parametrize("site", ["none", "same-origin"])  # who types the address, and our own page
def test_what_no_other_site_asked_for_is_answered(serving, site):
    assert serving.get("/v1/models", Sec_Fetch_Site=site).status == 200


def test_our_own_page_and_programs_are_answered(serving):
    assert serving.get("/v1/models", Origin=serving.url).status == 200
    assert "access-control-allow-origin" not in serving.get("/v1/models", Origin=serving.url).headers


@pytest.mark.parametrize("origins", [("{own}", "http://evil.example"), ("{own}", "{own}")])
def test_two_origins_are_refused(serving, origins):
    host = f"{serving.host}:{serving.port}"
    lines = "".join(f"Origin: {origin.format(own=serving.url)}\r\n" for origin in origins)
    connection = serving.send(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
    assert connection.recv(99).startswith(b"HTTP/1.1 403")


def test_cors_is_off_unless_an_origin_is_given(serving, keyed):
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
    for server, origin, status in ((serving, "http://app.example", 403), (keyed, "http://other.example", 403)):
        headers = {name.replace("_", "-"): value for name, value in asked.items()} | {"Origin": origin}
        assert server.request("OPTIONS", "/v1/models", headers=headers).status == status
    headers["Origin"] = "http://app.example"
    preflight = keyed.request("OPTIONS", "/v1/models", headers=headers)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "http://app.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "access-control-allow-credentials" not in preflight.headers
    reply = keyed.get(
        "/v1/models", Origin="http://app.example", Sec_Fetch_Site="cross-site", Authorization=f"Bearer {KEY}"
    )
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "http://app.example")


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"])
def test_without_the_key_nothing_is_answered_but_health(keyed, given):
    headers = {} if given is None else {"Authorization": given}
    for path in ("/v1/models", "/metrics", "/api/tags"):
        reply = keyed.get(path, **headers)
        assert reply.status == 401, path
        assert KEY not in reply.data.decode()
    assert keyed.post(CHAT, b"{", **headers).json["error"]["code"] == "invalid_api_key"
    assert keyed.post("/v1/messages", b"{", **headers).json["error"]["type"] == "authentication_error"
    assert keyed.get("/health", **headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
        {"X_Api_Key": KEY},
        {"X_Api_Key": KEY, "Authorization": "Bearer none"},
        {"X_Api_Key": "none", "Authorization": f"Bearer {KEY}"},
    ],
)
def test_with_the_key_all_is_answered(keyed, headers):
    assert keyed.get("/v1/models", **headers).status == 200


@pytest.mark.parametrize("given", ["", "wrong", f"Bearer {KEY}", f"{KEY}x"])
def test_a_wrong_key_in_anthropics_header_is_none(keyed, given):
    assert keyed.get("/v1/models", X_Api_Key=given).status == 401


@pytest.mark.parametrize(
    ("path", "status", "cached"),
    [
        ("/v1/models", 200, "no-store"),
        ("/v1/models/x", 404, "no-store"),
        ("/x", 404, "no-store"),
        ("/", 200, "no-cache"),
    ],
)
def test_what_an_answer_is_is_not_guessed_and_who_may_keep_it_is_said(serving, path, status, cached):
    reply = serving.get(path)
    assert reply.status == status
    assert (reply.headers["x-content-type-options"], reply.headers["cache-control"]) == ("nosniff", cached)
