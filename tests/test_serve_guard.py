"""What the server lets through: names, origins, tokens, sizes, folders, slow clients."""

import asyncio
import socket
import threading

import httpx
import pytest
from serving import wait_until
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse

from m3mlx.errors import M3Error
from m3mlx.serve import listen
from m3mlx.serve.connections import http_server
from m3mlx.serve.errors import BadRequest, BoundaryError
from m3mlx.serve.guard import HEADERS, JSON_BYTES, Guard, Guarded, Roots, is_loopback

TOKEN = "nine brass buttons"


async def app(scope, receive, send):
    await Request(scope, receive).body()
    await PlainTextResponse("let through")(scope, receive, send)


def ask(guard, path="/v1/memories", *, app=app, body=b"", **headers):
    """Status, headers and body that a request gets."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    given = {"host": "127.0.0.1:8642", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in given.items() if v is not None],
    }
    asyncio.run(Guarded(app, guard)(scope, receive, send))
    response_headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return (
        sent[0]["status"],
        response_headers,
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8642", "localhost:8642", "LOCALHOST", "[::1]:8642", "127.0.0.1", "127.1.2.3:1"],
)
def test_this_machine_may_ask_under_its_own_names(host):
    assert ask(Guard(), host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8642", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("192.168.1.9:8642", "8.8.8.8", "0.0.0.0:8642", "[fe80::1]:8642", "", None, " localhost"),
        *("user@127.0.0.1", "127.0.0.1:x", "127.0.0.1/evil", "localhost:99999", "[::1"),
    ],
)
def test_another_name_is_refused_since_it_may_be_rebound(host):
    status, _, body = ask(Guard(), host=host)
    assert status == 421 and b"wrong_host" in body


def test_two_names_are_refused():
    guard, scope = Guard(), {"path": "/", "headers": [(b"host", b"localhost")] * 2}
    with pytest.raises(BadRequest) as refused:
        guard.check(scope)
    assert refused.value.status == 421


def test_a_server_for_other_machines_takes_addresses_and_names_that_it_was_given():
    guard = Guard(names=("den.local",), anywhere=True, token=TOKEN)
    for host, status in (
        ("192.168.1.9:8642", 200),
        ("[fe80::1]:8642", 200),
        ("den.local:8642", 200),
        ("evil.example", 421),
    ):
        assert ask(guard, host=host, authorization=f"Bearer {TOKEN}")[0] == status


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"origin": "http://127.0.0.1:8642"}, 200),
        ({"origin": "http://127.0.0.1:8642", "sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),  # another server on this machine
        ({"origin": "http://localhost:8642"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "file://"}, 403),
        ({"origin": ""}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 403),
    ],
)
def test_pages_of_another_origin_are_refused(headers, status):
    got, response_headers, _ = ask(Guard(), **headers)
    assert got == status
    assert not any(name.startswith("access-control") for name in response_headers)


def test_a_link_to_the_page_may_be_followed_from_anywhere():
    visit = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert ask(Guard(), "/", **visit)[0] == 200
    assert ask(Guard(), "/", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403


@pytest.mark.parametrize(
    "given, status",
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (None, 401),
        ("", 401),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer \xfc", 401),
    ],
)
def test_with_a_token_nothing_is_told_without_it(given, status):
    got, response_headers, _ = ask(Guard(token=TOKEN), authorization=given)
    assert got == status
    assert response_headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert ask(Guard(token=TOKEN), "/", authorization=given)[0] == 200
    assert ask(Guard(token=TOKEN), "/health", authorization=given)[0] == 200


def test_answers_and_refusals_carry_what_keeps_browsers_careful():
    for _, response_headers, _ in (ask(Guard()), ask(Guard(), host="evil.example")):
        assert HEADERS.items() <= response_headers.items()
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_bodies_have_a_limit_told_or_not():
    assert ask(Guard(), content_length=str(JSON_BYTES + 1))[0] == 413
    form = "multipart/form-data; boundary=b"
    large = Guard(upload_bytes=2 * JSON_BYTES)
    assert ask(large, content_length=str(JSON_BYTES + 1), content_type=form)[0] == 200
    assert ask(large, content_length=str(3 * JSON_BYTES), content_type=form)[0] == 413
    other = ask(large, "/v1/completions", content_length=str(JSON_BYTES + 1), content_type=form)
    assert other[0] == 413
    with pytest.raises(M3Error, match=str(JSON_BYTES)):  # the application turns it into 413
        ask(Guard(), body=b"x" * (JSON_BYTES + 1))


def test_more_requests_than_may_be_here_are_told_to_come_again(monkeypatch):
    monkeypatch.setattr("m3mlx.serve.guard.REQUESTS", 0)
    status, response_headers, body = ask(Guard())
    assert status == 503 and int(response_headers["retry-after"]) > 0 and b"busy" in body


def run_slow(app, *, reads, writes):
    """An application behind a guard with little patience, and a client that is stuck."""
    sent = []

    async def receive():
        if not reads:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if not writes and message["type"] == "http.response.body":
            await asyncio.sleep(60)
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b""}
    scope["headers"] = [(b"host", b"localhost")]
    asyncio.run(Guarded(app, Guard(), patience=0.1)(scope, receive, send))
    return sent


def test_a_client_that_sends_nothing_is_given_up():
    with pytest.raises(M3Error, match="did not come to its end"):
        run_slow(app, reads=False, writes=True)


def test_a_client_that_takes_nothing_is_given_up_and_its_answer_ended():
    ended = []

    async def parts():
        try:
            while True:
                yield b"x"
        finally:
            ended.append(True)

    async def streaming(scope, receive, send):
        await StreamingResponse(parts())(scope, lambda: asyncio.sleep(60), send)

    run_slow(streaming, reads=True, writes=False)
    assert ended == [True]


def test_roots_resolve_links_and_dots(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "inner", outside):
        folder.mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "link").symlink_to(outside)
    (tmp_path / "door").symlink_to(root)
    roots = Roots([tmp_path / "door"])
    assert roots.resolve(str(root / "a.txt")) == root / "a.txt"
    assert roots.resolve(str(tmp_path / "door" / "inner" / ".." / "a.txt")) == root / "a.txt"
    for path in (
        *(outside, root / "link", root / "link" / "x", root / ".." / "outside", tmp_path),
        *(f"{root}x", "a.txt", "", "/", "~root/x"),
    ):
        with pytest.raises(BoundaryError):
            roots.resolve(str(path))
    with pytest.raises(BoundaryError, match="--root"):
        Roots().resolve(str(root))
    with pytest.raises(M3Error, match="no folder"):
        Roots([root / "a.txt"])


def test_loopback_is_this_machine_only():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.9", "evil.example", "")))


def test_connections_without_a_request_are_closed_and_keep_nobody_out(monkeypatch):
    """Half a head is no request, and of many that wait the oldest are closed."""
    monkeypatch.setattr("m3mlx.serve.connections.IDLE", 20)
    listener = listen("127.0.0.1", 0)
    server = http_server(Guarded(PlainTextResponse("hello"), Guard()), head_seconds=1.5)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    place = listener.getsockname()
    try:
        wait_until(lambda: server.started)
        halves = [socket.create_connection(place, timeout=30) for _ in range(30)]
        for half in halves:
            half.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        url = f"http://127.0.0.1:{place[1]}/"
        with httpx.Client() as client:
            assert client.get(url).text == "hello"
            assert [closed(half) for half in halves] == [True] * 30
            assert client.get(url).text == "hello"  # a connection that is used stays
        half = socket.create_connection(place, timeout=30)
        half.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"hello"):
            answer += half.recv(9000)
        half.sendall(b"GET")  # and then half of the next one
        assert closed(half)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def closed(connection):
    """Wait until the other side closes a connection."""
    with connection:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True


def test_a_client_that_sends_a_byte_now_and_then_is_given_up(monkeypatch):
    monkeypatch.setattr("m3mlx.serve.guard.SLOWEST", 1000)

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        pass

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b""}
    scope["headers"] = [(b"host", b"localhost")]
    with pytest.raises(M3Error, match="did not come to its end"):
        asyncio.run(Guarded(app, Guard(), patience=0.2)(scope, receive, send))
