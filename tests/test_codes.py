"""The numbers of the specifications, and that no other byte is an exception."""

from collections.abc import Callable
from typing import cast

import pytest

from pysocksify.codes import Atyp, Cd, Command, Method, Rep


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (Method, {0: "NO_AUTHENTICATION", 1: "GSSAPI", 2: "USERNAME_PASSWORD", 255: "NO_ACCEPTABLE"}),
        (Command, {1: "CONNECT", 2: "BIND", 3: "UDP_ASSOCIATE"}),
        (Atyp, {1: "IPV4", 3: "DOMAINNAME", 4: "IPV6"}),
        (
            Rep,
            {
                0: "SUCCEEDED",
                1: "GENERAL_FAILURE",
                2: "NOT_ALLOWED",
                3: "NETWORK_UNREACHABLE",
                4: "HOST_UNREACHABLE",
                5: "CONNECTION_REFUSED",
                6: "TTL_EXPIRED",
                7: "COMMAND_NOT_SUPPORTED",
                8: "ADDRESS_TYPE_NOT_SUPPORTED",
            },
        ),
        (Cd, {90: "GRANTED", 91: "REJECTED", 92: "NO_IDENTD", 93: "IDENTD_MISMATCH"}),
    ],
)
def test_every_byte_has_a_member(
    kind: type[Method] | type[Command] | type[Atyp] | type[Rep] | type[Cd], numbers: dict[int, str]
) -> None:
    for number in range(256):
        member = kind(number)
        assert member == number
        assert isinstance(member, kind)
        assert member.name == numbers.get(number, f"UNASSIGNED_{number}")
        assert member.assigned == (number in numbers)
        assert kind(number) is member
        assert f"{member:02X}" == f"{number:02X}"
    assert [member.value for member in kind] == sorted(numbers)


@pytest.mark.parametrize("value", [-1, 256, "1", None])
def test_what_is_no_byte_is_refused(value: object) -> None:
    kind: Callable[[object], object] = cast("Callable[[object], object]", Rep)
    with pytest.raises(ValueError):
        kind(value)
