"""Who may come in to the page, and what a browser may do with it."""

import re

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from argosy.core.errors import Internal
from argosy.web.guard import POLICIES, Guard, check_routes, policy_of

ADDRESS = "127.0.0.1:8710"
HERE = f"http://{ADDRESS}"
SOCKET = "/_nicegui_ws/socket.io/"
LIVE = f"ws://{ADDRESS}{SOCKET}"


@pytest.fixture
def links():
    return []


@pytest.fixture
def guard(links):
    async def talk(websocket):
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    page = '<title>&lt;script></title><script>a</script><script type="module">b</script>'
    app = Starlette(
        routes=[
            Route("/", lambda _: HTMLResponse(page)),
            Route("/api/state", lambda _: PlainTextResponse("{}")),
            Route("/_nicegui/3/static/a.js", lambda _: PlainTextResponse("c")),
            Route("/new", lambda _: PlainTextResponse("nobody thought of me")),
            WebSocketRoute(SOCKET, talk),
        ]
    )
    return Guard(app, ADDRESS, on_enter=links.append)


@pytest.fixture
def stranger(guard):
    return TestClient(guard, base_url=HERE)


@pytest.fixture
def client(guard, stranger):
    """A browser that came by the link."""
    assert stranger.get(guard.link).status_code == 200
    return stranger


@pytest.mark.capability("M3")
@pytest.mark.parametrize("path", ["/", "/api/state", "/_nicegui/3/static/a.js", "/report?version=a:1"])
def test_without_the_link_nothing_is_shown(stranger, path):
    answer = stranger.get(path)
    assert answer.status_code == 401
    assert "argosy ui" in answer.json()["error"]["message"]


def test_the_link_lets_one_browser_in_and_is_used_up_then(guard, links):
    first, second = TestClient(guard, base_url=HERE), TestClient(guard, base_url=HERE)
    link = guard.link
    entered = first.get(link)
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert link.partition("=")[2] not in cookie  # what stood in an address is worth nothing any more
    assert first.get("/api/state").status_code == 200
    assert second.get(link).status_code == 401
    assert second.get("/api/state").status_code == 401
    assert links == [guard.link]  # the next link is told, for a second browser
    assert second.get(links[0]).status_code == 200
    assert second.get("/api/state").status_code == 200
    assert first.get(link).status_code == 200  # whoever is inside may open it again


@pytest.mark.parametrize("token", ["", "a", "%00", "é"])
def test_a_wrong_token_is_refused(stranger, token):
    assert stranger.get(f"/enter?token={token}").status_code == 401
    assert "set-cookie" not in stranger.get(f"/enter?token={token}").headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:9", "", "127.0.0.1:8710.evil.example"])
def test_a_page_of_another_site_that_points_its_name_here_is_refused(client, guard, host):
    assert client.get("/api/state", headers={"host": host}).status_code == 421
    assert client.get(guard.link, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options"])
def test_nothing_is_asked_for_but_looks(client, method):
    assert getattr(client, method)("/api/state").status_code == 405
    assert getattr(client, method)(SOCKET).status_code == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_what_a_page_from_elsewhere_asks_is_refused_even_with_the_cookie(client, headers):
    assert client.get("/api/state", headers=headers).status_code == 403


def test_the_live_connection_needs_the_cookie_and_this_very_origin(client, guard):
    with client.websocket_connect(LIVE, headers={"origin": HERE, "host": ADDRESS}) as socket:
        assert socket.receive_text() == "hello"
    for headers in ({"origin": "http://evil.example"}, {}, {"origin": "null"}):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(LIVE, headers={"host": ADDRESS} | headers) as socket,
        ):
            socket.receive_text()
    stranger = TestClient(guard, base_url=HERE)
    with (
        pytest.raises(WebSocketDisconnect),
        stranger.websocket_connect(LIVE, headers={"origin": HERE, "host": ADDRESS}) as socket,
    ):
        socket.receive_text()


def test_only_scripts_with_this_answers_nonce_run_and_nothing_is_loaded_from_elsewhere(client):
    answers = [client.get("/") for _ in range(2)]
    nonces = set()
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        found = re.findall(r'<script nonce="([^"]+)"', answer.text)
        assert len(found) == 2
        assert f"'nonce-{found[0]}'" in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self' 'nonce-" in policy
        assert not re.search(r"https?:|\*", policy)
        assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
        assert int(answer.headers["content-length"]) == len(answer.content)
        nonces.add(found[0])
    assert len(nonces) == 2


def test_every_answer_closes_what_browsers_leave_open(client):
    for path in ("/", "/api/state", "/nothing", "/_nicegui/3/static/a.js"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
    assert client.get("/api/state").headers["cache-control"] == "no-store"


def test_a_path_without_a_policy_is_not_there(client):
    assert client.get("/new").status_code == 404


def test_a_route_without_a_policy_stops_the_start(guard):
    with pytest.raises(Internal, match=r"'/new' of the page has no policy"):
        check_routes(guard._app.routes)
    with pytest.raises(Internal, match="no policy"):
        check_routes([Mount("/", routes=[Route("/admin", lambda _: None)])])
    check_routes([Mount("/_nicegui_ws/", app=guard), Route("/api/log", lambda _: None)])


def test_only_the_link_is_open():
    assert [path for path, policy in POLICIES.items() if policy != "session"] == ["/enter"]
    assert policy_of("/_nicegui/3.1/x/y.js") == "session"
    assert policy_of("/_niceguix") is None
