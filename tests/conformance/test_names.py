"""Names: every way to ask gets an address that stands for the name, without a question to the network."""

import ipaddress
import json

import pytest

from tests.lab.ways import about_sockets
from tests.lab.wrapped import Run, Servers

FAKE = ipaddress.ip_network("198.18.0.0/15")
ULA = ipaddress.ip_network("fc00::/7")


@pytest.mark.everywhere(only=about_sockets)
def test_every_way_to_ask(run: Run, servers: Servers) -> None:
    done = run.python("names.py", "target.test", via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    found = json.loads(done.out)
    ipv4 = found["ipv4"]
    assert ipaddress.ip_address(ipv4) in FAKE
    assert found["any"][0] == ipv4, "IPv4 first: happy-eyeballs clients don't dial twice"
    assert found["again"] == found["byname_ex"] == [ipv4]
    assert found["byname"] == ipv4
    assert all(ipaddress.ip_address(one) in ULA for one in found["ipv6"] + found["any"][1:])
    assert found["byaddr"] == found["nameinfo"] == "target.test"
    assert found["numeric"] == ["192.0.2.77"]
    assert set(found["localhost"]) == set(found["sub.localhost"]) == {"127.0.0.1"}
    assert found["different"] == 100, "each name has an address of its own"


def test_a_name_that_is_in_no_zone(run: Run, servers: Servers) -> None:
    """Only the proxy can tell, so it's the connection that fails."""
    done = run.python("errors.py", "nowhere.test", 80, via=servers("bundled").url("socks5"))
    assert done.out.strip() == "EHOSTUNREACH", done
    assert "nowhere.test" in done.err
