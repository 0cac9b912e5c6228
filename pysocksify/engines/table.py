"""What the engines are and what each can't promise, once, as data: for --engines, the README and the tests.

A gap is what a program that runs under an engine may not count on. REFUSED: it is told so, by an error or by not being
run, and nothing gets out. HOLE: the engine doesn't see it, and it may go past the proxy.
"""

from pysocksify.record import record

REFUSED, HOLE = "refused", "hole"


@record(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that an engine can't promise: its key for tests, words for a person, and REFUSED or HOLE."""

    key: str
    words: str
    outcome: str


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


def _refused(key: str, words: str) -> Gap:
    return Gap(key=key, words=words, outcome=REFUSED)


def _hole(key: str, words: str) -> Gap:
    return Gap(key=key, words=words, outcome=HOLE)


_UNDUMPABLE = _refused(
    "undumpable", "connections of a program that forbids to be looked into (ssh-agent, some password tools): EACCES"
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
            _refused(
                "foreign-sockets",
                "where pidfd_getfd(2) isn't allowed (default containers): Internet sockets that the program didn't "
                "make itself but was given",
            ),
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
            _refused("debuggers", "debuggers inside (gdb, strace): a process has one tracer only"),
            _refused("io_uring", "io_uring: ENOSYS, and programs do without"),
            _refused("interfaces", "datagrams that name an interface in a control message"),
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
        ),
    ),
)  # fmt: skip

BY_NAME = {engine.name: engine for engine in ENGINES}
