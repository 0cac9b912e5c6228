"""Chains: which hops each mode takes, and what it makes of hops that don't answer."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysocksify.address import Address
from pysocksify.route.chain import DEAD_SECONDS, MODES, Chain, ChainState, Proxy, Selection

A, B, C, D = HOPS = tuple(Proxy(scheme="socks5", address=Address(f"192.0.2.{n}", 1080)) for n in range(1, 5))


def state(mode: str, *hops: Proxy, length: int = 1, seed: int = 1) -> ChainState:
    chain = Chain(name="c", mode=mode, length=length, hops=hops, connect_timeout=10.0, reply_timeout=15.0)
    return ChainState(chain, Random(seed))


def paths(chain: ChainState, times: int, now: float = 0.0) -> list[tuple[Proxy, ...]]:
    return [chain.selection(now).path() for _ in range(times)]


def test_strict_is_all_in_order_whatever_happened() -> None:
    chain = state("strict", A, B, C)
    selection = chain.selection(0.0)
    assert selection.path() == (A, B, C)
    assert selection.dead(B) is False
    assert selection.path() == (A, B, C)
    assert paths(chain, 2) == [(A, B, C)] * 2


def test_dynamic_leaves_dead_hops_out_for_a_while() -> None:
    chain = state("dynamic", A, B, C)
    selection = chain.selection(100.0)
    assert selection.path() == (A, B, C)
    assert selection.dead(A, 105.0)
    assert selection.path() == (B, C)
    assert chain.selection(105.0 + DEAD_SECONDS - 0.1).path() == (B, C)
    assert chain.selection(105.0 + DEAD_SECONDS).path() == (A, B, C)
    assert selection.path() == (B, C)  # a selection keeps what it has


def test_dynamic_tries_remembered_hops_again_rather_than_none() -> None:
    chain = state("dynamic", A, B)
    first, other = chain.selection(0.0), chain.selection(0.0)
    assert first.dead(A)
    assert not first.dead(B)
    with pytest.raises(LookupError, match="chain c"):
        first.path()
    assert chain.selection(1.0).path() == (A, B)
    assert other.dead(B, 1.0)
    assert other.path() == (A,)  # this connection hasn't tried it


def test_round_robin_takes_turns() -> None:
    assert paths(state("round_robin", A, B, C), 4) == [(A,), (B,), (C,), (A,)]
    assert paths(state("round_robin", A, B, C, length=2), 4) == [(A, B), (C, A), (B, C), (A, B)]
    assert paths(state("round_robin", A, A, B), 4) == [(A,), (A,), (B,), (A,)]


def test_round_robin_passes_over_dead_hops() -> None:
    chain = state("round_robin", A, B, C, length=2)
    selection = chain.selection(0.0)
    assert selection.path() == (A, B)
    assert selection.dead(B)
    assert selection.path() == (C, A)
    assert paths(chain, 3) == [(C, A)] * 3
    assert not selection.dead(C)


def test_random_draws_evenly() -> None:
    drawn = Counter(paths(state("random", *HOPS, length=2), 12_000))
    assert len(drawn) == 12  # ordered pairs of four
    # chi-squared with 11 degrees of freedom: 31.3 is passed once in a thousand seeds
    assert sum((count - 1000) ** 2 / 1000 for count in drawn.values()) < 31.3


def test_random_never_takes_fewer() -> None:
    chain = state("random", A, B, C, length=2)
    selection = chain.selection(0.0)
    assert selection.dead(A)
    assert set(selection.path()) == {B, C}
    assert not selection.dead(C)
    with pytest.raises(LookupError):
        selection.path()
    assert {hop for path in paths(chain, 50, now=1.0) for hop in path} == {A, B, C}  # too few answered of late


def path_or_none(selection: Selection) -> tuple[Proxy, ...]:
    try:
        return selection.path()
    except LookupError:
        return ()


@given(
    st.sampled_from(MODES), st.integers(1, 4), st.integers(), st.lists(st.tuples(st.integers(0, 3), st.floats(0, 40)))
)
def test_any_failures(mode: str, length: int, seed: int, failures: list[tuple[int, float]]) -> None:
    chain = state(mode, *HOPS, length=length, seed=seed)
    now = 0.0
    selection = chain.selection(now)
    tried_dead: set[Proxy] = set()
    for index, later in failures:
        now += later
        path = selection.path()
        assert path
        assert len(set(path)) == len(path)
        if mode in ("random", "round_robin"):
            assert len(path) == length
        if mode != "strict":
            assert not tried_dead & set(path)
        hop = path[index % len(path)]
        tried_dead.add(hop)
        if not selection.dead(hop, now):
            assert mode == "strict" or path_or_none(selection) == ()
            selection, tried_dead = chain.selection(now), set()


def test_no_password_in_any_text() -> None:
    proxy = Proxy(scheme="socks5", address=Address("::1", 1080), username=b"alice", password=b"sesame")
    assert str(proxy) == "socks5://[::1]:1080"
    chain = Chain(name="c", mode="strict", length=1, hops=(proxy,), connect_timeout=1.0, reply_timeout=1.0)
    assert "sesame" not in f"{proxy!r} {chain!r} {chain}"
