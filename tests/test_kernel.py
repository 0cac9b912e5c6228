"""What may be used of this kernel, and what is taken away."""

import pytest

from pysocksify import kernel
from pysocksify.errors import ConfigError
from pysocksify.kernel import FEATURES, VARIABLE, Kernel


def test_everything_may_be_used() -> None:
    assert all(getattr(kernel.of({}), feature) for feature in FEATURES)
    assert kernel.of({VARIABLE: ""}) == Kernel()


@pytest.mark.parametrize("feature", FEATURES)
def test_each_can_be_taken_away(feature: str) -> None:
    without = kernel.of({VARIABLE: feature})
    assert [name for name in FEATURES if not getattr(without, name)] == [feature]


def test_several_are_taken_away_and_stay_so() -> None:
    without = kernel.of({VARIABLE: "ipv6,enclosure"}).without(["pidfd_getfd"])
    assert [name for name in FEATURES if not getattr(without, name)] == ["pidfd_getfd", "enclosure", "ipv6"]


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"the environment: PYSOCKSIFY_WITHOUT: magic is no feature; they are wait_"):
        kernel.of({VARIABLE: "ipv6,magic"})
