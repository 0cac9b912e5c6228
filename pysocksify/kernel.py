"""What may be used of this kernel. Each feature is found out by using it, with another way for where it isn't.

Tests, and whoever wants to see what an older kernel or a container would be like, take features away one by one: their
names, with commas between them, in PYSOCKSIFY_WITHOUT.
"""

from pysocksify.errors import ConfigError
from pysocksify.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VARIABLE = "PYSOCKSIFY_WITHOUT"


@record(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What may be used, if it's there. An engine that finds a feature missing passes on a value less it."""

    wait_killable: bool = True
    """A call that waits for the supervisor isn't issued again by a signal: WAIT_KILLABLE_RECV, Linux 5.19."""

    addfd_send: bool = True
    """A descriptor is installed and the call answered in one step: SECCOMP_ADDFD_FLAG_SEND, Linux 5.14."""

    sync_wake_up: bool = True
    """Notifications wake up on the same CPU: SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, Linux 6.6."""

    pidfd_getfd: bool = True
    """Descriptors of the target can be taken: pidfd_getfd(2), Linux 5.6; refused in default containers."""

    enclosure: bool = True
    """User and network namespaces may be made: user_namespaces(7)."""

    simultaneous_open: bool = True
    """Two sockets may connect to each other (RFC 9293 section 3.5); hardened kernels can refuse it."""

    ipv6: bool = True
    """::1 is there."""

    def without(self, names: "Iterable[str]") -> "Kernel":
        """A copy less these features. ValueError: there's no such feature."""
        taken = set(names)
        unknown = taken.difference(FEATURES)
        if unknown:
            raise ValueError(f"{min(unknown)} is no feature; they are {', '.join(FEATURES)}")
        return Kernel(**{name: getattr(self, name) and name not in taken for name in FEATURES})


def of(environ: "Mapping[str, str]") -> Kernel:
    """What may be used, by PYSOCKSIFY_WITHOUT. ConfigError."""
    names = [name for name in environ.get(VARIABLE, "").split(",") if name]
    try:
        return Kernel().without(names)
    except ValueError as error:
        raise ConfigError("the environment", VARIABLE, str(error)) from None


FEATURES: tuple[str, ...] = Kernel.__match_args__
