"""A program at the SAMP hub gets the table that was written."""

import threading

import pytest
from astropy.table import Table
from pyvo.samp import SAMPHubServer, SAMPIntegratedClient, conf

from lensjax import samp


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of this test alone."""
    monkeypatch.setenv("SAMP_HUB", f"std-lockurl:{(tmp_path / 'hub').as_uri()}")
    monkeypatch.setattr(conf, "use_internet", False)
    server = SAMPHubServer(web_profile=False, lockfile=str(tmp_path / "hub"), addr="127.0.0.1")
    server.start()
    yield server
    server.stop()


def test_a_program_that_loads_tables_gets_it(hub, tmp_path):
    path = tmp_path / "a folder" / "candidates.vot"
    path.parent.mkdir()
    table = Table({"id": ["a", "b"], "rank": [1, 2]})
    table.write(path, format="votable")
    assert "no program at the SAMP hub" in samp.send(path)
    got, came = {}, threading.Event()

    def receive(private_key, sender_id, msg_id, mtype, params, extra):
        got.update(params)
        came.set()

    receiver = SAMPIntegratedClient(name="receiver", addr="127.0.0.1")
    receiver.connect()
    try:
        receiver.bind_receive_notification(samp.MESSAGE, receive)
        assert samp.send(path) == "sent to receiver"
        assert came.wait(30)
    finally:
        receiver.disconnect()
    found = Table.read(got["url"], format="votable")
    assert found["id"].tolist() == ["a", "b"] and found["rank"].tolist() == [1, 2]


def test_without_a_hub_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMP_HUB", f"std-lockurl:{(tmp_path / 'none').as_uri()}")
    said = samp.send(tmp_path / "candidates.vot")
    assert "no SAMP hub runs" in said and str(tmp_path / "candidates.vot") in said
    assert "\n" not in said
