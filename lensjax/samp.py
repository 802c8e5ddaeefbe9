"""Sends a table to the programs on this desktop, by SAMP (IVOA recommendation, version 1.3)."""

from pathlib import Path

from lensjax.errors import UsageError, one_line

try:
    from pyvo.samp import SAMPHubError, SAMPIntegratedClient, SAMPProxyError
except ImportError as error:
    raise UsageError("--samp needs pyvo: pip install '.[samp]'") from error

MESSAGE = "table.load.votable"


def send(table: Path) -> str:
    """Sends a VOTable of this machine to all programs that load such, TOPCAT and Aladin among them,
    and returns in one line which they were, or why there are none."""
    client = SAMPIntegratedClient(name="lensjax", callable=False)
    url = table.absolute().as_uri()
    try:
        client.connect()
    except (SAMPHubError, SAMPProxyError, OSError):
        return f"--samp: no SAMP hub runs here: start TOPCAT or Aladin, and open {table} there"
    try:
        names = [
            client.get_metadata(receiver).get("samp.name", receiver)
            for receiver in client.get_subscribed_clients(MESSAGE)
        ]
        params = {"url": url, "table-id": url, "name": f"lens candidates of {table.parent.name}"}
        client.notify_all({"samp.mtype": MESSAGE, "samp.params": params})
    except (SAMPHubError, SAMPProxyError, OSError) as error:
        return f"--samp: the SAMP hub took no table ({one_line(error, 160)}): open {table} by hand"
    finally:
        client.disconnect()
    if not names:
        return f"--samp: no program at the SAMP hub loads tables: start TOPCAT, and open {table}"
    return f"sent to {', '.join(names)}"
