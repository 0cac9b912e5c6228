"""What the engines are and what each can't promise, once, as data: for --engines, the README and the tests.

A gap is what a program that runs under an engine may not count on. REFUSED: it is told so, by an error or by not being
run, and nothing gets out. SHOWS: nothing gets out, but the program can tell that the proxy is there. HOLE: the engine
doesn't see it, and it may go past the proxy. Some gaps are only there where the kernel, or a container, doesn't let
pysocksify do what it does elsewhere: WHERE has those places.
"""

from pysocksify.record import record

REFUSED, SHOWS, HOLE = "refused", "shows", "hole"

WHERE = {
    "pidfd_getfd": "where pidfd_getfd(2) isn't allowed (default containers)",
    "enclosure": "where namespaces can't be made (default containers)",
    "simultaneous_open": "where the kernel refuses simultaneous open",
    "sys_ptrace": "where root lacks CAP_SYS_PTRACE (default containers)",
}
"""Places, by what is missing there: a feature of `kernel.FEATURES`, or a capability."""


@record(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that an engine can't promise: its key for tests, words for a person, and REFUSED, SHOWS or HOLE.

    `where` is a key of WHERE, or "" for a gap that is there everywhere.
    """

    key: str
    words: str
    outcome: str
    where: str = ""


@record(frozen=True, slots=True, kw_only=True)
class About:
    """One engine: how it catches calls, which programs it reaches, what it needs, and its gaps."""

    name: str
    catches: str
    reaches: str
    needs: str
    gaps: tuple[Gap, ...]

    @property
    def holes(self) -> tuple[Gap, ...]:
        """What may go past the proxy."""
        return tuple(gap for gap in self.gaps if gap.outcome == HOLE)

    def in_place(self, where: str) -> tuple[Gap, ...]:
        """The gaps of a place, or with "" those that are there everywhere."""
        return tuple(gap for gap in self.gaps if gap.where == where)


def _refused(key: str, words: str, where: str = "") -> Gap:
    return Gap(key=key, words=words, outcome=REFUSED, where=where)


def _hole(key: str, words: str, where: str = "") -> Gap:
    return Gap(key=key, words=words, outcome=HOLE, where=where)


_UNDUMPABLE = _refused(
    "undumpable", "connections of a program that forbids to be looked into (ssh-agent, some password tools): EACCES"
)

_LISTENERS = _refused("listeners", "programs that listen to others' calls themselves (seccomp_unotify(2)): EBUSY")
_CHANGED_USER = _refused(
    "changed-user",
    "connections of a program that has become another user's without an execve(2) since, as apt's: EACCES",
    "sys_ptrace",
)
_GROUPS = "multicast groups, and devices for UDP sockets: ENODEV, EPERM"
_MULTICAST = _hole("multicast", "multicast groups that it joins: the network is told (IGMP)", "enclosure")
_EARLY = Gap(
    key="early",
    words="a connect() that doesn't wait, or whose wait was ended by a signal or a limit, succeeds before the chain "
    "stands; where the chain fails a reset follows",
    outcome=SHOWS,
    where="simultaneous_open",
)

# In the order in which `auto` looks at them.
ENGINES = (
    About(
        name="seccomp",
        catches="a seccomp filter that hands calls to the supervisor",
        reaches="every program, static and Go ones too",
        needs="Linux 5.9, x86-64 or aarch64; nobody else may be listening to calls already",
        gaps=(
            _refused("setuid", "a setuid program started by an ordinary user: it would run without its privileges"),
            _UNDUMPABLE,
            _refused("io_uring", "io_uring: ENOSYS, and programs do without"),
            _LISTENERS,
            _refused(
                "foreign-sockets",
                "Internet sockets that the program didn't make itself but was given: EPERM",
                "pidfd_getfd",
            ),
            _refused("dissolving", "dissolving a connection that stands: EOPNOTSUPP", "pidfd_getfd"),
            _CHANGED_USER,
            _refused("udp-numbers", "moving a UDP socket that isn't connected to a low descriptor: EPERM", "enclosure"),
            _hole(
                "udp-passed",
                "a datagram that names an interface in a control message, on a UDP socket that came from another "
                "program",
                "enclosure",
            ),
            _refused("udp-groups", _GROUPS, "enclosure"),
            _EARLY,
        ),
    ),
    About(
        name="preload",
        catches="a small C library in front of libc (LD_PRELOAD)",
        reaches="dynamically linked programs",
        needs="that library, for the program's libc: it is built when pysocksify is installed, or comes with the wheel",
        gaps=(
            _refused("static", "static programs, as PROGRAM and when one is started by it"),
            _refused("go", "Go programs, which make their calls themselves even when they are dynamically linked"),
            _refused("setuid", "setuid programs and those with file capabilities: the dynamic linker leaves it out"),
            _refused("other-machine", "programs for another ELF class or machine, such as 32-bit ones"),
            _hole("raw-calls", "system calls that a dynamically linked program makes itself, without libc"),
            _hole("io_uring", "io_uring, where the program sets it up without libc's syscall(2)"),
            _MULTICAST,
            _EARLY,
        ),
    ),
    About(
        name="ptrace",
        catches="ptrace(2), through python-ptrace",
        reaches="every program, static and Go ones too; each caught call is slower",
        needs="python-ptrace; leave to trace its own children (Yama's ptrace_scope 0 or 1) and to take their sockets "
        "(pidfd_getfd(2), Linux 5.6)",
        gaps=(
            _refused("setuid", "a setuid program started by an ordinary user: it would run without its privileges"),
            _UNDUMPABLE,
            _LISTENERS,
            _refused("debuggers", "debuggers inside (gdb, strace): a process has one tracer only"),
            _refused("io_uring", "io_uring: ENOSYS, and programs do without"),
            _refused("interfaces", "datagrams that name an interface in a control message"),
            _refused("udp-groups", _GROUPS),
            _refused("inside-preload", "to run inside a pysocksify that uses preload: names couldn't be asked for"),
            _CHANGED_USER,
            _EARLY,
        ),
    ),
    About(
        name="python",
        catches="the module `socket`, replaced inside Python",
        reaches="Python programs, also those that they or a shell start",
        needs="CPython 3.10, or newer, for the program",
        gaps=(
            _refused("not-python", "programs that are neither Python nor a shell, also when Python starts one"),
            _refused("isolated", "Python with -I, -E or -S, also when Python starts one"),
            _refused("uvloop", "uvloop, which doesn't use the module `socket`"),
            _hole("from-shells", "what a shell starts that isn't Python, or is Python with -I, -E or -S"),
            _hole("extensions", "C extensions with sockets of their own (pycurl, psycopg, grpcio), ctypes"),
            _MULTICAST,
            _EARLY,
        ),
    ),
)  # fmt: skip

BY_NAME = {engine.name: engine for engine in ENGINES}
