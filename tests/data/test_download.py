import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from drcorl_ray.data.download import dsrl_mirrors, find_dataset
from drcorl_ray.data.dsrl import write_dataset
from drcorl_ray.errors import UserError
from tests.helpers.columns import make_columns

NAME = "SafetyMadeUp-v0-1-2.hdf5"


class Server(ThreadingHTTPServer):
    """Serves one file, with faults chosen by the first folder of the path, and records the requested ranges."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.asked: list[tuple[str, str | None]] = []

    def url(self, fault: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{fault}/{NAME}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        fault, asked = self.path.split("/")[1], self.headers.get("Range")
        self.server.asked.append((fault, asked))
        if fault == "absent" or (fault == "busy-once" and len(self.server.asked) == 1):
            self.send_error(404 if fault == "absent" else 503)
            return
        if fault.startswith("hub-"):
            self.send_response(302)
            self.send_header("X-Linked-ETag", f'"{sha(self.server.content)}"')
            self.send_header("Location", f"/{fault.removeprefix('hub-')}/{NAME}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = {"page": b"<html>log in</html>", "other": self.server.content[:-1] + b"?"}.get(fault, self.server.content)
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != "no-ranges" else 0
        if first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        body = content[first:]
        self.wfile.write(body[: len(content) // 3 + 1] if fault == "drops" else body[:0] if fault == "dead" else body)


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("source") / NAME
    write_dataset(path, make_columns(20_000))
    assert path.stat().st_size > 600_000  # several chunks, so that a part may be kept and resumed
    return path.read_bytes()


@pytest.fixture
def server(content):
    server = Server(content)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_present_file_is_found_without_a_server(tmp_path, monkeypatch):
    (tmp_path / NAME).write_bytes(b"here")
    assert find_dataset(NAME, [], folder=tmp_path) == tmp_path / NAME
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    assert find_dataset(NAME, ["http://127.0.0.1:9/unused"]) == tmp_path / NAME


def test_download_from_the_second_mirror(server, content, tmp_path):
    folder = tmp_path / "new" / "folder"
    path = find_dataset(NAME, [server.url("absent"), server.url("good")], sha(content), folder)
    assert path.read_bytes() == content
    assert list(folder.iterdir()) == [path]
    assert [fault for fault, _ in server.asked] == ["absent", "good"]


def test_the_hubs_own_checksum_is_verified(server, content, tmp_path):
    """The redirect's response announces it. Fault: read the last response only."""
    mirrors = [server.url("hub-other"), server.url("hub-good")]
    assert find_dataset(NAME, mirrors, folder=tmp_path).read_bytes() == content
    assert [fault for fault, _ in server.asked] == ["hub-other", "other", "hub-good", "good"]


def test_dropped_connections_are_taken_up_where_they_broke(server, content, tmp_path):
    assert find_dataset(NAME, [server.url("drops")], sha(content), tmp_path).read_bytes() == content
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in server.asked if asked]
    assert len(server.asked) >= 3
    assert starts == sorted(starts)
    assert starts[0] > len(content) // 4


def test_an_earlier_runs_part_is_continued(server, content, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(content[:1000])
    assert find_dataset(NAME, [server.url("good")], sha(content), tmp_path).read_bytes() == content
    assert server.asked == [("good", "bytes=1000-")]


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_part_of_full_length_or_more(server, content, tmp_path, extra):
    (tmp_path / f"{NAME}.part").write_bytes(content + extra)
    assert find_dataset(NAME, [server.url("good")], sha(content), tmp_path).read_bytes() == content


def test_a_part_of_another_file_is_given_up(server, content, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"something else" * 100)
    assert find_dataset(NAME, [server.url("good")], sha(content), tmp_path).read_bytes() == content
    assert server.asked[-1] == ("good", None)


def test_a_server_without_ranges_sends_all(server, content, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(content[:1000])
    assert find_dataset(NAME, [server.url("no-ranges")], sha(content), tmp_path).read_bytes() == content
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, content, tmp_path):
    assert find_dataset(NAME, [server.url("busy-once")], sha(content), tmp_path).read_bytes() == content


@pytest.mark.parametrize("fault", ["other", "page", "absent", "dead"])
def test_nothing_usable_leaves_no_file(server, content, tmp_path, fault):
    checksum = None if fault == "page" else sha(content)
    with pytest.raises(UserError) as caught:
        find_dataset(NAME, [server.url(fault)], checksum, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert NAME in message
    assert f"put the file into {tmp_path}" in message
    assert not (tmp_path / NAME).exists()
    assert all(leftover.stat().st_size == 0 for leftover in tmp_path.iterdir())


def test_a_wrong_mirror_does_not_spoil_the_next(server, content, tmp_path):
    mirrors = [server.url("other"), server.url("good")]
    assert find_dataset(NAME, mirrors, sha(content), tmp_path).read_bytes() == content


def test_an_unreachable_mirror_fails_soon(tmp_path):
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be downloaded"):
        find_dataset(NAME, ["http://127.0.0.1:9/", "http://name.invalid/"], None, tmp_path)
    assert time.monotonic() - started < 15


def test_an_unwritable_folder_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        find_dataset(NAME, [server.url("good")], None, tmp_path / "file")


@pytest.mark.parametrize("name", ["../x.hdf5", "a/b.hdf5", "/etc/passwd", "..", "", "a\\b.hdf5", "C:x"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="plain file name"):
        find_dataset(name, [], folder=tmp_path)


def test_dsrls_mirrors():
    urls = dsrl_mirrors(NAME)
    assert [Path(url).name for url in urls] == [NAME, NAME]
    assert "datasets/YYY-45/DSRL" in urls[0]
    infos = pytest.importorskip("dsrl.infos")
    old = infos.DATASET_URLS["HalfCheetahVelocity"]
    assert dsrl_mirrors(Path(old).name)[1] == old
