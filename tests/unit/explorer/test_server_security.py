"""Who is answered, and what an answer may do in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from manyscope.explorer import guard, server

TOKEN = "a-token-that-is-long-enough"
API = "/api/experiments/one"
NASTY = "<script>alert('1')</script>\"&\u2028"
Strangers = Callable[..., TestClient]

ROUTES = ["/", "/api/experiments", "/api/openapi.json", "/favicon.ico", f"{API}/about", "/api/nothing", "/docs",
          f"{API}/pictures/0?version=first", f"{API}/figures/0?version=first"]  # fmt: skip


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"}, {"Cookie": f"manyscope={TOKEN}"}, {"Cookie": "a=b; ; =;\"[]"},
        {"Authorization": b"Bearer \xff\xfe"},
    ],
)  # fmt: skip
def test_nothing_without_the_token(strangers: Strangers, experiment: Any, path: str, headers: dict) -> None:
    answer = strangers(headers=headers).get(path)
    assert answer.status_code == 401
    assert "open the address that `manyscope explore` printed" in answer.text
    assert experiment.views == []


def test_no_question_without_the_token(strangers: Strangers, experiment: Any) -> None:
    for path in ("find", "within", "search/image", "csv"):
        assert strangers().post(f"{API}/{path}?version=first&token={TOKEN}", json={}).status_code == 401
    assert strangers().get(f"{API}/about", params={"token": TOKEN}).status_code == 401  # it would end up in logs
    assert experiment.views == []


def test_the_token_becomes_a_cookie(strangers: Strangers) -> None:
    client = strangers()
    for wrong in ("", "wrong", TOKEN + "x", "\u00e9"):
        answer = client.get("/", params={"token": wrong})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
    answer = client.get("/", params={"token": TOKEN, "experiment": "tw&o#"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?experiment=tw%26o%23")
    assert client.get("/", params={"token": TOKEN}).headers["location"] == "/"
    flags = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/"} <= flags
    assert not any(flag.startswith("domain") for flag in flags)
    assert client.get(f"{API}/about").status_code == 200  # by the cookie


def test_servers_side_by_side_have_cookies_of_their_own(strangers: Strangers) -> None:
    one = strangers().get("/", params={"token": TOKEN}).headers["set-cookie"].split("=")[0]
    other = TestClient(server.make_app({}, "another"), base_url="http://127.0.0.1", follow_redirects=False)
    assert one != other.get("/", params={"token": "another"}).headers["set-cookie"].split("=")[0]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost@evil", "10.0.0.7", "[::2]:1"]
)
def test_a_name_that_is_not_ours(strangers: Strangers, experiment: Any, host: str) -> None:
    client = strangers(headers={"Authorization": f"Bearer {TOKEN}"})
    for path in ("/", f"/?token={TOKEN}", f"{API}/about"):
        answer = client.get(path, headers={"Host": host})
        assert (answer.status_code, answer.json()) == (403, {"detail": "this server does not go by that name"})
    assert experiment.views == []


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "LOCALHOST:8000", "[::1]:99"])
def test_names_of_the_loopback(client: TestClient, host: str) -> None:
    assert client.get(f"{API}/about", headers={"Host": host}).status_code == 200


def test_a_given_host(experiment: Any) -> None:
    def statuses(hosts: list[str], *asked: str) -> list[int]:
        client = TestClient(server.make_app({"one": experiment}, TOKEN, hosts), base_url="http://127.0.0.1")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return [client.get("/api/experiments", headers={**headers, "Host": host}).status_code for host in asked]

    assert statuses(["lab.example"], "lab.example:80", "other.example", "10.0.0.7") == [200, 403, 403]
    # A name can be made to point here from elsewhere, a number cannot.
    assert statuses(["box", "*"], "10.0.0.7:80", "[fe80::1]", "box", "other.example") == [200, 200, 200, 403]


def test_another_site_may_not_ask(client: TestClient) -> None:
    for site, status in {"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200}.items():
        assert client.get(f"{API}/about", headers={"Sec-Fetch-Site": site}).status_code == status


def test_no_answer_allows_another_site_to_read_it(client: TestClient) -> None:
    origin = {"Origin": "http://evil.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    answers = [
        client.get(path, headers=origin) for path in (f"{API}/about", f"{API}/pictures/0?version=first", "/none")
    ]
    answers.append(client.options(f"{API}/find", headers=preflight))
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answers[-1].status_code == 405


def test_headers_of_every_answer(client: TestClient, strangers: Strangers) -> None:
    for asking, path in [(client, one) for one in (*ROUTES, f"{API}/pictures/1?version=first")] + [(strangers(), "/")]:
        headers = asking.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_the_page_may_only_run_its_own_program_and_ask_this_server(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'unsafe-eval' 'sha256-")
    assert "'unsafe-inline'" not in policy["script-src"]
    assert "http" not in page.headers["content-security-policy"]
    embedded = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.text, re.DOTALL)
    assert embedded
    assert json.loads(embedded[1]) == {"served": True}
    assert TOKEN not in page.text


def test_scripts_in_the_data_are_data(client: TestClient) -> None:
    about = client.get(f"{API}/about")
    assert about.headers["content-type"] == "application/json"
    assert (
        about.json()["title"] == about.json()["columns"][1]["levels"][2] == about.json()["columns"][3]["name"] == NASTY
    )
    found = client.post(f"{API}/records?version=first", json={"rows": [39], "names": ["kind", "caption", NASTY]})
    assert found.headers["content-type"] == "application/json"
    assert found.json()[0]["id"] == NASTY
    assert client.get(f"{API}/row", params={"version": "first", "id": NASTY}).json() == {"row": 39}
    text = client.post(f"{API}/find?version=first", json={"filters": {NASTY + "?": {"low": 1}}})
    assert (text.status_code, text.headers["content-type"]) == (422, "application/json")
    csv = client.post(f"{API}/csv?version=first", json={"rows": {"form": "list", "data": "JwAAAA=="}})
    assert csv.headers["content-type"].startswith("text/csv")
    assert '"' + NASTY.replace('"', '""') + '"' in csv.text


OUTSIDE = ["../two", "..", ".", "../../etc/passwd", "/etc/passwd", "one/../../x", "one\x00", "..\\two", "%2e%2e", "~"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_experiments(client: TestClient, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def forbidden(*args: Any, **more: Any) -> None:
        raise AssertionError("a file was opened")

    client.get("/")  # a client takes dots for itself; the page is then the one from before
    monkeypatch.setattr("pathlib.Path.open", forbidden)
    monkeypatch.setattr("pathlib.Path.read_bytes", forbidden)
    coded = quote(name, safe="")
    for path in (
        f"/api/experiments/{coded}/about", f"/api/experiments/{coded}/pictures/0?version=first",
        f"{API}/pictures/{coded}?version=first", f"{API}/figures/{coded}?version=first",
        f"{API}/neighbours/{coded}?version=first",
        f"{API}/figures/{coded}.png?version=first", f"/static/x{coded}",
    ):  # fmt: skip
        assert client.get(path).status_code in (404, 405, 422), path
    answer = client.get(f"{API}/row", params={"version": "first", "id": name})
    assert answer.json() == {"row": None}
    assert client.get(f"{API}/about", params={"version": name}).status_code == 200  # which takes none
    assert client.get(f"{API}/neighbours/0", params={"version": name}).status_code == 409


def chunks(total: int) -> Iterator[bytes]:
    for _ in range(0, total, 2**20):
        yield b" " * 2**20


@pytest.mark.parametrize("length", [None, "10"])
@pytest.mark.parametrize("path", ["find", "search/image", "csv", "search/text"])
def test_bodies_are_counted_whatever_they_say(
    client: TestClient, experiment: Any, path: str, length: str | None
) -> None:
    headers = {"content-type": "application/json"} | ({"content-length": length} if length else {})
    body = chunks(guard.MOST_BYTES + 2**20)
    answer = client.post(f"{API}/{path}?version=first", content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (413, {"detail": "the body has more than 32 MiB"})
    assert not any(view.asked for view in experiment.views)


def test_a_picture_of_too_many_pixels_is_not_decoded(client: TestClient, experiment: Any) -> None:
    """Black compresses well: few bytes that would fill the memory."""
    import io

    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    assert len(file.getvalue()) < 2**17
    answer = client.post(f"{API}/search/image?version=first", content=file.getvalue())
    assert (answer.status_code, answer.json()["detail"][:40]) == (422, "the picture has 12000 x 12000 pixels; at")
    assert experiment.views[0].asked == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/a/b/c.parquet: broken", "c.parquet: broken"),
        ("not readable (No such file: '/home/me/x y/z.npy')", "not readable (No such file: 'x y/z.npy')"),
        ("use lr/2 or a/b and 3 / 4", "use lr/2 or a/b and 3 / 4"),
    ],
)
def test_folders_of_the_machine_are_not_told(text: str, shown: str) -> None:
    assert server._ABSOLUTE.sub("", text) == shown
