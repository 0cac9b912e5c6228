"""Every number of the SOCKS specifications; a number that they don't assign gets a name, not an exception."""

from enum import IntEnum


class _Byte(IntEnum):
    """One byte on the wire. `Rep(9)` is a member too, named UNASSIGNED_9; what doesn't fit a byte is a ValueError."""

    @classmethod
    def _missing_(cls, value: object) -> "_Byte | None":
        if not isinstance(value, int) or not 0 <= value <= 255:
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNASSIGNED_{value}"
        member._value_ = value
        # setdefault is atomic: two threads that ask at once get the same member.
        stored = cls._value2member_map_.setdefault(value, member)
        assert isinstance(stored, cls)
        return stored

    @property
    def assigned(self) -> bool:
        """Whether a specification gives this number a meaning."""
        return self._name_ in type(self).__members__


class Method(_Byte):
    """SOCKS5 authentication methods, RFC 1928 section 3."""

    NO_AUTHENTICATION = 0x00
    GSSAPI = 0x01
    USERNAME_PASSWORD = 0x02
    NO_ACCEPTABLE = 0xFF


class Command(_Byte):
    """What a client asks for: SOCKS5 CMD, RFC 1928 section 4; SOCKS4 CD of a request has the first two."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03


class Atyp(_Byte):
    """SOCKS5 address types, RFC 1928 section 5."""

    IPV4 = 0x01
    DOMAINNAME = 0x03
    IPV6 = 0x04


class Rep(_Byte):
    """SOCKS5 reply codes, RFC 1928 section 6."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


class Cd(_Byte):
    """SOCKS4 reply codes (SOCKS: A protocol for TCP proxy across firewalls, "CONNECT")."""

    GRANTED = 90
    REJECTED = 91
    NO_IDENTD = 92
    IDENTD_MISMATCH = 93
