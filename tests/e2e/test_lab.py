"""The lab itself, without pysocksify: every client reaches the target directly from the open client.

A client that fails here is broken or missing a tool; only one that passes says something about pysocksify elsewhere.
"""

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.children import within
from tests.lab.clients import CLIENTS, Client
from tests.lab.targets import Target
from tests.lab.wrapped import PlaceOf, finish, need

pytestmark = pytest.mark.root


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_client_directly(
    client: Client, user_account: Account, place: PlaceOf, target: Target, lab_town: town.Town
) -> None:
    need(client.tool)
    mark = target.log.mark()
    line = within(lab_town.open, user_account.command(*client.command(place(user_account, town.TARGET))))
    done = finish(line, environment=user_account.environment, stdin=client.stdin)
    assert done.status == 0, done
    if client.service == "http":
        peers = [event.peer for event in target.log.since(mark) if event.service == "http"]
        assert peers, "the target saw no request"
        assert set(peers) == {town.OPEN}
        assert len(peers) >= client.answers


def test_the_closed_client_is_closed(user_account: Account, target: Target, lab_town: town.Town) -> None:
    before = lab_town.leaks()
    words = ["curl", "-sS", "-m", "1", f"http://{town.TARGET}:{target.ports['http']}/peer"]
    done = finish(within(lab_town.closed, words), environment=user_account.environment)
    assert done.status == 28, done
    assert lab_town.leaks() > before, "the firewall counts what it drops"
