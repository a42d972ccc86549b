"""Tables of one's own: what is read, what is fetched, and what is said of everything that is wrong."""

from __future__ import annotations

import http.server
import io
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.data import fetching
from manyscope.data.fetching import fetch
from manyscope.errors import DataError
from manyscope.scopes.panoramas.data.csv_tables import read_csv
from manyscope.scopes.panoramas.data.sources import find_source
from manyscope.scopes.panoramas.settings import CsvSettings, PanoramasDownload, PanoramasPreprocess, TableSettings
from manyscope.tables.manifest import describe

SOURCE = find_source("csv")


def png(seed: int = 0, size: tuple[int, int] = (16, 8)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def own(*files: Path | tuple[Path, str], **values: object) -> PanoramasDownload:
    named = [file if isinstance(file, tuple) else (file, None) for file in files]
    tables = [TableSettings(path=str(path), split=split) for path, split in named]  # type: ignore[arg-type]
    return PanoramasDownload(source="csv", csv=CsvSettings(files=tuple(tables), pause_s=0, **values))  # type: ignore[arg-type]


def problems(settings: PanoramasDownload, **checks: object) -> list[str]:
    return list(SOURCE.problems(settings, PanoramasPreprocess(**checks)))  # type: ignore[arg-type]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of two pictures beside it."""
    (tmp_path / "own/images").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png")):
        (tmp_path / "own/images" / name).write_bytes(png(seed))
    path = tmp_path / "own/qa.csv"
    path.write_text("url,query,annotation\nimages/a.png,sky,blue\nimages/b.png,sky,grey\n")
    return path


# ------------------------------------------------------------------------------------------------------ reading
def test_both_headers_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"\xef\xbb\xbfresponse,note,url, instruction ,direction,type\r\n"
        b'"red, or\r\nso",x,a.png, what ? ,back,colour\r\n\r\n"",x,b.png,"say ""hi""",,\r\n'
    )
    rows = read_csv(path)
    assert [tuple(row) for row in rows] == [
        (2, "a.png", "what ?", "red, or\r\nso", "colour", "back", ""),
        (5, "b.png", 'say "hi"', "", "", "", ""),
    ]


HEADERS = "allowed: url,query,annotation or url,instruction,response"
HEAD = b"url,query,annotation\n"
NO_PORT = "Port could not be cast to integer value as 'y'"
KINDS = "allowed: http://, https://, or a path"
UNKNOWN = f"the address 'ftp://x' is of an unknown kind; {KINDS}"
NO_FILE = (
    "there is no file 'no.png'; mend the path, which is relative to the table, or set download.csv.missing to 'skip'"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"url,query\na,b\n", f":1: column 'annotation' is missing; {HEADERS}; it has url, query"),
        (b"url,query,annotatoin\n", f":1: column 'annotation' is missing; {HEADERS}; did you mean 'annotatoin'?"),
        (b"url,query,instruction,annotation\na,b,c,d\n", ":1: column 'query' is there 2 times"),
        (HEAD + b"a,b,c,d\n", ":2: the row has 4 fields, the header 3; put texts that hold a comma between quotes"),
        (HEAD + b"a,b,c\na,b,\xe9\n", ":3: not UTF-8 (invalid continuation byte); save it as UTF-8"),
        (HEAD + b'a,b,"c\n', ":2: not CSV (unexpected end of data); mend the quotes"),
        (HEAD, ": the table has no rows; mend download.csv.files"),
        (b"", ": the table has no rows; mend download.csv.files"),
        (HEAD + b"ftp://x,b,c\n", f":2: {UNKNOWN}"),
        (HEAD + b"http://[x,b,c\n", f":2: the address 'http://[x' cannot be understood (Invalid IPv6 URL); {KINDS}"),
        (HEAD + b"http://x:y/a,b,c\n", f":2: the address 'http://x:y/a' cannot be understood ({NO_PORT}); {KINDS}"),
        (HEAD + b"http://?a,b,c\n", f":2: the address 'http://?a' names no host; {KINDS}"),
        (HEAD + b"no.png,b,c\n", f":2: {NO_FILE}"),
    ],
)  # fmt: skip
def test_broken_tables(content: bytes, message: str, table: Path, tmp_path: Path) -> None:
    table.write_bytes(content)
    assert problems(own(table)) == [f"download.csv.files: {table}{message}"]
    with pytest.raises(DataError) as caught:
        describe(tmp_path / "raw", SOURCE.download(own(table), tmp_path / "raw"))
    assert str(caught.value) == f"{table}{message}"


def test_no_table(table: Path, tmp_path: Path) -> None:
    assert problems(own()) == ["download.csv.files: download.csv.files: no table is named; name your CSV files"]
    lost = table.with_name("lost.csv")
    [said] = problems(own(lost))
    assert said.endswith("lost.csv: the table cannot be read (No such file or directory); mend download.csv.files")


def test_problems(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = table.parent / "images"
    (images / "square.png").write_bytes(png(size=(8, 8)))
    (images / "text.png").write_text("no picture")
    with table.open("a") as file:
        file.write("images/square.png,sky,x\nimages/text.png,sky,x\nimages/a.png,sky,\nimages/a.png,sky,blue\n")
    other = table.with_name("other.csv")
    other.write_text("url,query,annotation\n./images/a.png,sky,azure\nimages/b.png,sea,x\n")
    with caplog.at_level(logging.INFO, "manyscope"):
        said = problems(own((table, "train"), (other, "test")))
    split = "take it out of one of the tables"
    square = (
        "the picture has 8 x 8 px, which is 1.00:1; allowed: equirectangular panoramas, 2:1 within 2%; leave it out, or"
        " cut or extend it to the full sphere"
    )
    assert [line.removeprefix("download.csv.files: ") for line in said] == [
        f"{table}:6: the row has no annotation; mend or remove the row, or set preprocess.bad_rows to 'skip'",
        f"{table}:4: images/square.png: {square}",
        f"{table}:5: images/text.png: the picture cannot be read (of no known format); get it again, or leave it out",
        f"{other}:2: the picture './images/a.png' is in train ({table}:2) and test; {split}",
        f"{other}:3: the picture 'images/b.png' is in train ({table}:3) and test; {split}",
    ]
    assert (
        f"{table}: 6 rows, 4 pictures, 4 questions, 1.25 references per question (1 to 2), 1 rows twice" in caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, "manyscope"):
        assert problems(own((table, "train"), (other, "test")), bad_rows="skip") == []
    assert "5 bad rows or pictures will be skipped" in caplog.text


def test_unlabelled_tables_need_no_answers(table: Path) -> None:
    table.write_text("url,query\nimages/a.png,sky\n")
    assert problems(own((table, "unlabelled"))) == []


# ----------------------------------------------------------------------------------------------------- local files
def test_local(table: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    manifest = describe(raw, SOURCE.download(own(table), raw))
    [found] = SOURCE.tables(own(table), raw, manifest)
    assert [row.url for row in found.rows] == ["images/a.png", "images/b.png"]
    for row, seed in zip(found.rows, (0, 1), strict=True):
        assert (raw / row.picture).is_symlink()
        assert (raw / row.picture).read_bytes() == png(seed)
    assert found.file == str(table)
    assert dict(SOURCE.rooms(own(table), raw)) == {}
    assert describe(raw, SOURCE.download(own(table), raw)).equals(manifest)


def test_tables_that_changed_since_the_download(table: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    manifest = describe(raw, SOURCE.download(own(table), raw))
    (table.parent / "images/c.png").write_bytes(png(2))
    with table.open("a") as file:
        file.write("images/c.png,sky,x\n")
    message = "the raw data are not of this table as it is now; run the stage download again"
    for settings in (own(table), own(table, table)):
        with pytest.raises(DataError, match=message):
            SOURCE.tables(settings, raw, manifest)


def test_lost_local_files_can_be_skipped(table: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (table.parent / "images/b.png").unlink()
    skipping = own(table, missing="skip")
    manifest = describe(raw, SOURCE.download(skipping, raw))
    assert manifest.filter(pl.col("path").str.starts_with("pictures"))["state"].sort().to_list() == ["done", "failed"]
    assert [row.picture != "" for row in SOURCE.tables(skipping, raw, manifest)[0].rows] == [True, False]
    assert problems(skipping) == []


# --------------------------------------------------------------------------------------------------------- the web
class Web(http.server.BaseHTTPRequestHandler):
    """Serves what `pages` has by path: bytes, or the number of a refusal."""

    pages: dict[str, bytes | int]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        page = self.pages.get(self.path, 404)
        if isinstance(page, int):
            self.send_error(page)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes | int], list[str]]]:
    class Own(Web):
        pages: dict[str, bytes | int] = {f"/{name}.png": png(seed) for seed, name in enumerate("abcd")}  # noqa: RUF012
        asked: list[str] = []  # noqa: RUF012

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "_WAITS_S", (0.0,) * 5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", Own.pages, Own.asked
        server.shutdown()
        thread.join()


def remote(folder: Path, host: str, names: str) -> Path:
    path = folder / "web.csv"
    rows = [f"{host}/{name}.png?size=l,what,{name}" if "?" in name else f"{host}/{name}.png,what,x" for name in names]
    path.write_text("\n".join(["url,query,annotation", *rows, ""]))
    return path


def test_fetched_once(web: tuple, tmp_path: Path) -> None:
    host, _, asked = web
    settings, raw = own(remote(tmp_path, host, "abca")), tmp_path / "raw"
    manifest = describe(raw, SOURCE.download(settings, raw))
    assert asked == ["/a.png", "/b.png", "/c.png"]
    [table] = SOURCE.tables(settings, raw, manifest)
    assert [(raw / row.picture).read_bytes() for row in table.rows] == [png(0), png(1), png(2), png(0)]
    (raw / table.rows[1].picture).unlink()
    asked.clear()
    assert describe(raw, SOURCE.download(settings, raw)).equals(manifest)
    assert asked == ["/b.png"]


def test_addresses_beyond_ascii(web: tuple, tmp_path: Path) -> None:
    host, pages, asked = web
    pages["/%C3%BC%20b.PNG?size=l%2Fm"] = png(7)
    path = tmp_path / "web.csv"
    path.write_text(f"url,query,annotation\n{host}/ü b.PNG?size=l%2Fm,what,x\n", encoding="utf-8")
    settings, raw = own(path), tmp_path / "raw"
    manifest = describe(raw, SOURCE.download(settings, raw))
    assert asked == ["/%C3%BC%20b.PNG?size=l%2Fm"]
    [row] = SOURCE.tables(settings, raw, manifest)[0].rows
    assert row.picture.endswith(".png")
    assert (raw / row.picture).read_bytes() == png(7)


def test_dead_addresses(web: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host, pages, asked = web
    pages["/b.png"], pages["/c.png"] = 404, b"<html>gone</html>"
    path, raw = remote(tmp_path, host, "abcd"), tmp_path / "raw"
    with pytest.raises(DataError) as caught:
        describe(raw, SOURCE.download(own(path), raw))
    assert str(caught.value) == (
        f"{path}:3: cannot be fetched from {host}/b.png (HTTP 404 Not Found) (and 1 more errors, see the log); run the"
        " same command again, remove its rows, or set download.csv.missing to 'skip'"
    )
    assert f"{path}:4: what arrives from {host}/c.png is no picture" in caplog.text
    # What was fetched is kept; the dead are asked again.
    asked.clear()
    manifest = describe(raw, SOURCE.download(own(path, missing="skip"), raw))
    assert asked == ["/b.png", "/c.png"]
    states = {source: state for source, state in manifest.select("source", "state").iter_rows() if "http" in source}
    assert states == {f"{host}/{name}.png": "failed" if name in "bc" else "done" for name in "abcd"}
    [table] = SOURCE.tables(own(path), raw, manifest)
    assert [bool(row.picture) for row in table.rows] == [True, False, False, True]
    with pytest.raises(
        DataError, match=r"missing_fraction: 2 of 4 pictures cannot be had; .*; allowed: at most 40% of"
    ):
        describe(raw, SOURCE.download(own(path, missing="skip", missing_fraction=0.4), raw))


def test_pause(web: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, asked = web
    path = remote(tmp_path, host, "abc")
    settings = PanoramasDownload(csv=CsvSettings(files=(TableSettings(path=str(path)),), pause_s=1000))
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    list(SOURCE.download(settings, tmp_path / "raw"))
    assert len(asked) == 3
    assert slept[0] == 0
    assert len(slept) == 3
    assert all(900 < seconds <= 1000 for seconds in slept[1:])


def test_host_that_does_not_answer_is_left_alone(
    web: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, asked = web
    tried: list[str] = []
    real = fetching.urllib.request.urlopen

    def urlopen(request: object, **args: object) -> object:
        address = request.full_url  # type: ignore[attr-defined]
        tried.append(address)
        if "nowhere" in address:
            raise OSError("no route")
        return real(request, **args)  # type: ignore[arg-type]

    monkeypatch.setattr(fetching.urllib.request, "urlopen", urlopen)
    path = tmp_path / "web.csv"
    rows = [f"http://nowhere/{i}.png,what,x" for i in range(9)] + [f"{host}/{name}.png,what,x" for name in "abcd"]
    path.write_text("\n".join(["url,query,annotation", *rows, ""]))
    manifest = describe(tmp_path, SOURCE.download(own(path, missing="skip", missing_fraction=0.9), tmp_path))
    assert (manifest["state"] == "failed").sum() == 9
    assert sum("nowhere" in address for address in tried) == 3 * 3
    assert len(asked) == 4
    assert f"{path}:10: http://nowhere/8.png is left out, nowhere does not answer" in caplog.text


# --------------------------------------------------------------------------------------- fetching without a checksum
def test_without_checksum(web: tuple, tmp_path: Path) -> None:
    """Length decides; a part that an earlier call left may be of another file."""
    host, pages, _ = web
    target = tmp_path / "a.png"
    target.with_name(".a.png.arriving").write_bytes(b"something else")
    fetch(f"{host}/a.png", target, None)
    assert target.read_bytes() == pages["/a.png"]
    assert list(tmp_path.iterdir()) == [target]
