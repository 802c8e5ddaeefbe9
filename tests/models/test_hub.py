"""Weights from the hub: its client against a small hub on this machine, and without any."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from huggingface_hub import constants, snapshot_download
from safetensors.numpy import save

from lensjax.errors import UsageError
from lensjax.models.hub import fetch
from lensjax.models.torch_file import read_state_dict

COMMIT, OLDER = "a" * 40, "b" * 40
WEIGHTS = save({"w": np.arange(6, dtype=np.float32)})
FILES = {
    "timm/both": {"model.safetensors": WEIGHTS, "pytorch_model.bin": b"bin", "README.md": b"text"},
    "timm/bin": {"pytorch_model.bin": b"bin", "other.bin": b"other"},
    "me/lone": {"best.pth": b"pth", "config.json": b"{}"},
    "me/several": {"one.pth": b"1", "sub/two.pth": b"2", "notes.txt": b"text"},
    "me/none": {"README.md": b"text"},
    "me/gated": {"model.safetensors": WEIGHTS},
}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as its client asks here."""

    def do_GET(self) -> None:
        place, _, asked = self.path.partition("?")[0].partition("/resolve/")
        place = place.removeprefix("/api/models").removeprefix("/")
        repository, kind, revision = re.fullmatch(
            r"([^/]+/[^/]+)(?:/(revision|tree)/(.*))?", place
        ).groups()
        if asked:
            revision, _, file = asked.partition("/")
        commit = {None: COMMIT, "main": COMMIT, "refs%2Fpr%2F1": OLDER}.get(revision, revision)
        files = FILES.get(repository)
        if files is None:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        elif commit not in (COMMIT, OLDER):
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif asked and repository == "me/gated":
            self._answer(403, {"X-Error-Code": "GatedRepo"})
        elif asked:
            etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
            self._answer(200, {"X-Repo-Commit": commit, "ETag": etag}, files[file])
        else:
            siblings = [{"rfilename": name} for name in files]
            tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files]
            info = {"id": repository, "sha": commit, "siblings": siblings}
            body = json.dumps(tree if kind == "tree" else info).encode()
            self._answer(200, {"Content-Type": "application/json"}, body)

    do_HEAD = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path) -> Iterator[str]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    use(monkeypatch, address)
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "file", "revision"),
    [
        ("hf://timm/both", "model.safetensors", COMMIT),
        ("hf://timm/both@main", "model.safetensors", COMMIT),
        ("hf://timm/both@refs/pr/1", "model.safetensors", OLDER),
        (f"hf://timm/both@{COMMIT}/pytorch_model.bin", "pytorch_model.bin", COMMIT),
        ("hf://timm/bin", "pytorch_model.bin", COMMIT),
        ("hf://me/lone", "best.pth", COMMIT),
        ("hf://me/several/sub/two.pth", "sub/two.pth", COMMIT),
    ],
)
def test_the_right_file_is_fetched_and_found_again_without_a_network(
    monkeypatch, address, file, revision
):
    fetched = fetch(address)
    repository = "/".join(address.split("/")[2:4]).split("@")[0]
    assert (fetched.repository, fetched.revision, fetched.file) == (repository, revision, file)
    assert fetched.path.read_bytes() == FILES[repository][file]
    use(monkeypatch, "http://127.0.0.1:9")
    assert fetch(address) == fetched
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(address) == fetched


def test_a_snapshot_of_which_a_part_was_fetched_is_read_without_a_network(monkeypatch):
    snapshot_download("timm/both", allow_patterns="*.bin")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("hf://timm/both").path.read_bytes() == b"bin"


def test_what_is_fetched_is_a_state_dict():
    np.testing.assert_array_equal(read_state_dict(fetch("hf://timm/both").path)["w"], range(6))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf://timm", "must be hf://OWNER/REPOSITORY"),
        ("hf://timm/both@", "must be hf://OWNER/REPOSITORY"),
        ("hf://ti mm/both", "cannot fetch hf://ti mm/both: Repo id must use"),
        ("hf://me/away", "there is no http://.*/me/away, or it is private"),
        ("hf://me/gated", "it is gated: accept its terms at http://.*/me/gated, then"),
        ("hf://timm/both@v9", "timm/both has no such revision"),
        ("hf://timm/both/x.pth", "no such file.*holds model.safetensors, pytorch_model.bin$"),
        ("hf://me/several", "name the file of weights.*holds one.pth, sub/two.pth$"),
        ("hf://me/none", "name the file of weights.*holds none$"),
    ],
)
def test_what_is_not_there_is_one_clear_line(address, reason):
    with pytest.raises(UsageError, match=reason) as error:
        fetch(address)
    assert "\n" not in str(error.value)


def test_nothing_in_the_cache_and_no_network_is_one_clear_line(monkeypatch, tmp_path):
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=f"no answer from http.*not in the cache .{tmp_path}"):
        fetch("hf://timm/both")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=f"HF_HUB_OFFLINE is set.*not in the cache .{tmp_path}"):
        fetch("hf://timm/both")
