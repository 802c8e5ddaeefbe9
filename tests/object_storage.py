"""A server of S3 on this machine."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from lensjax.places import place

SECRET = "not-to-be-seen"


@contextlib.contextmanager
def served(bucket: str) -> Iterator[str]:
    """The address of an empty bucket, which s3fs finds by the environment, as a user's."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    said = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setitem(os.environ, name, value)
        root = place(f"s3://{bucket}")
        type(root.fs).clear_instance_cache()
        place(f"s3://{bucket}").fs.mkdir(bucket)
        yield f"s3://{bucket}"
        type(root.fs).clear_instance_cache()
    server.stop()


def upload(path: Path | str, address: str) -> str:
    """Puts the folder of `path` at an address, and returns that of `path`."""
    path = Path(path)
    there = place(address)
    for file in path.parent.rglob("*"):
        if file.is_file():
            to = there / file.relative_to(path.parent).as_posix()
            to.fs.pipe_file(to.path, file.read_bytes())
    return f"{address}/{path.name}"
