"""A short run of scripts/soak: memory of idle relays, and that clients who die leave nothing behind."""

from scripts import soak


def test_idle_relays() -> None:
    with soak.destination() as target, soak.server() as running:
        assert soak.idle(running, target, 800) < soak.AIM


def test_deaths() -> None:
    with soak.destination() as target, soak.server() as running:
        before, after = soak.deaths(running, target, soak.PER_SECOND, 2.0)
        assert after["sessions"] == 0
        assert not soak.left(before, after)
