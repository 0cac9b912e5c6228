"""Four hosts as network namespaces: a target, a proxy host between, a closed client and an open one.

    closed 192.0.2.2 ──── 192.0.2.1 ┐                ┌ 198.51.100.1 ──── 198.51.100.2 target
                                    proxy (routes only for `open`)
    open 203.0.113.2 ── 203.0.113.1 ┘

`closed` has a default route, but its firewall lets only the proxies' TCP ports out and counts everything else, so that
a leak is a number and not a silence. From `open` the target can be reached directly. IPv6 is the same with
2001:db8:1::/64 (closed), :2:: (target) and :3:: (open). Only the proxy host knows the target's names: its /etc/hosts
is its own (`ip netns exec` mounts /etc/netns/NAME over /etc); the clients' resolver is an address that never answers.
"""

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000
NAMESPACES = Path("/run/netns")
OVERLAYS = Path("/etc/netns")
OWN_NAME = re.compile(r"pysocksify-(\d+)-\w+")

TARGET, TARGET6 = "198.51.100.2", "2001:db8:2::2"
EXIT, EXIT6 = "198.51.100.1", "2001:db8:2::1"
PROXY, PROXY6 = "192.0.2.1", "2001:db8:1::1"
PROXY_FROM_OPEN = "203.0.113.1"
CLOSED, CLOSED6 = "192.0.2.2", "2001:db8:1::2"
OPEN = "203.0.113.2"
RESOLVER = "198.51.100.53"
UNREACHABLE = "198.51.100.200"  # the proxy host has an `unreachable` route for it
DENIED = "198.51.100.201"  # danted's rules forbid it

NAMES = {
    "target.test": (TARGET,),
    "v6only.test": (TARGET6,),
    "dual.test": (TARGET, TARGET6),
    "unreachable.test": (UNREACHABLE,),
    "denied.test": (DENIED,),
}

# alice's password for servers that ask the system: `openssl passwd -6 -salt pysocksify 's3cret:p@ss'`
USER, PASSWORD = "alice", "s3cret:p@ss"
PASSWORD_HASH = "$6$pysocksify$luVYxlrXStezz7FhyRK8yWwbcMzm9q5yTrNARgjtot3Z5v0x3rkUr21L2XtuK8r4p.LS84IczfLAC1dewI7h/."

LINKS = """
link add name t type veth peer name c netns {closed}
link set dev t name closed
link add name o type veth peer name p netns {open}
link set dev o name open
link add name t type veth peer name p netns {target}
link set dev t name target
address add {proxy}/24 dev closed
address add {proxy6}/64 dev closed nodad
address add 203.0.113.1/24 dev open
address add 2001:db8:3::1/64 dev open nodad
address add {exit}/24 dev target
address add {exit6}/64 dev target nodad
link set lo up
link set closed up
link set open up
link set target up
route add unreachable {unreachable}/32
"""

CLIENT = """
link set dev {peer} name uplink
address add {address}/24 dev uplink
address add {address6}/64 dev uplink nodad
link set lo up
link set uplink up
route add default via {gateway}
route add default via {gateway6}
"""

# Neighbour and multicast-listener messages are the kernel's own; everything else that isn't for a proxy is a leak.
FIREWALL = """
table inet lab {
    set proxies { type inet_service; }
    counter leaks { }
    chain output {
        type filter hook output priority 0; policy accept;
        oifname "lo" accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report } accept
        ip daddr 192.0.2.1 tcp dport @proxies accept
        ip6 daddr 2001:db8:1::1 tcp dport @proxies accept
        counter name leaks drop
    }
}
"""


# What the target host gets from the open client's own addresses has gone past the proxies.
WATCH = """
table inet lab {
    counter direct { }
    chain input {
        type filter hook prerouting priority 0; policy accept;
        ip saddr 203.0.113.0/24 counter name direct
        ip6 saddr 2001:db8:3::/64 counter name direct
    }
}
"""


class Town:
    """The four namespaces, from construction to `close()`. Needs root.

    Attributes `target`, `proxy`, `closed` and `open` are the namespaces' names.
    """

    def __init__(self) -> None:
        sweep()
        self._prefix = f"pysocksify-{os.getpid()}"
        self.target, self.proxy, self.closed, self.open = (
            f"{self._prefix}-{role}" for role in ("target", "proxy", "closed", "open")
        )
        self.namespaces = (self.target, self.proxy, self.closed, self.open)
        try:
            for name in self.namespaces:
                run("ip", "netns", "add", name)
            self._links()
            self._files()
            nft(self.closed, "-f", "-", stdin=FIREWALL)
            nft(self.target, "-f", "-", stdin=WATCH)
        except BaseException:
            self.close()
            raise

    def _links(self) -> None:
        batch(
            self.proxy,
            LINKS.format(
                closed=self.closed,
                open=self.open,
                target=self.target,
                proxy=PROXY,
                proxy6=PROXY6,
                exit=EXIT,
                exit6=EXIT6,
                unreachable=UNREACHABLE,
            ),
        )
        hosts = (
            (self.closed, "c", CLOSED, CLOSED6, PROXY, PROXY6),
            (self.open, "p", OPEN, "2001:db8:3::2", PROXY_FROM_OPEN, "2001:db8:3::1"),
            (self.target, "p", TARGET, TARGET6, EXIT, EXIT6),
        )
        for name, peer, address, address6, gateway, gateway6 in hosts:
            text = CLIENT.format(peer=peer, address=address, address6=address6, gateway=gateway, gateway6=gateway6)
            batch(name, text)
        for family in ("ipv4", "ipv6"):
            for interface in ("open", "target"):
                setting = f"net.{family}.conf.{interface}.forwarding=1"
                run("ip", "netns", "exec", self.proxy, "sysctl", "-q", "-w", setting)

    def _files(self) -> None:
        localhost = "127.0.0.1 localhost\n::1 localhost\n"
        known = "".join(f"{address} {name}\n" for name, addresses in NAMES.items() for address in addresses)
        overlay(self.proxy, "hosts", localhost + known)
        overlay(self.proxy, "resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        account = f"{USER}:x:20000:20000::/nonexistent:/bin/sh\n"
        for name in (self.proxy, self.target):
            overlay(name, "passwd", Path("/etc/passwd").read_text(encoding="utf-8") + account)
            overlay(name, "shadow", f"root:*:19000::::::\n{USER}:{PASSWORD_HASH}:19000::::::\n", mode=0o600)
        for name in (self.closed, self.open):
            overlay(name, "hosts", localhost)
            overlay(name, "resolv.conf", f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")

    def admit(self, port: int) -> None:
        """Lets the closed client out to this TCP port of the proxy host."""
        nft(self.closed, f"add element inet lab proxies {{ {port} }}")

    def leaks(self) -> int:
        """How many packets the closed client has tried to send past the proxies so far."""
        return counted(self.closed, "leaks")

    def direct(self) -> int:
        """How many packets have reached the target host from the open client without a proxy so far."""
        return counted(self.target, "direct")

    def settle(self, name: str, timeout: float = 5.0) -> list[str]:
        """Waits until nothing runs in a namespace any more; ends what still does then and returns its command lines."""
        running = pids(name)
        if not running:
            return []
        deadline = time.monotonic() + timeout
        for pid in running:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    break
            finally:
                os.close(pidfd)
        return end_all(name)

    def close(self) -> list[str]:
        """Ends whatever still runs in the namespaces and removes them; returns the command lines it had to end."""
        ended = [line for name in self.namespaces for line in end_all(name)]
        for name in self.namespaces:
            remove(name)
        return ended


def counted(name: str, counter: str) -> int:
    """The packets of a firewall counter in a namespace."""
    shown = nft(name, f"list counter inet lab {counter}")
    found = re.search(r"packets (\d+)", shown)
    if found is None:
        raise RuntimeError(f"no counter: {shown}")
    return int(found[1])


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in this network namespace meanwhile; sockets made there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(NAMESPACES / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(there)
        try:
            yield
        finally:
            setns(home)
    finally:
        os.close(there)
        os.close(home)


def setns(fd: int) -> None:
    """setns(2) of the calling thread (Python has it from 3.12 only)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def listener(namespace: str | None, host: str, port: int = 0, *, backlog: int = 1024) -> socket.socket:
    """A listening TCP socket in a namespace (None: here); port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def make() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        return sock

    if namespace is None:
        return make()
    with inside(namespace):
        return make()


def free_port(namespace: str | None, host: str) -> int:
    """A TCP port that nothing listens on now, for servers that can't choose one themselves."""
    with listener(namespace, host) as sock:
        port: int = sock.getsockname()[1]
    return port


def run(*command: str, stdin: str = "") -> str:
    """Runs a command that must succeed; returns what it printed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def nft(name: str, *words: str, stdin: str = "") -> str:
    """Runs nft(8) within a namespace. Each test asks for its counters: `ip netns exec` would take twice the time."""
    with inside(name):
        return run("nft", *words, stdin=stdin)


def batch(name: str, commands: str) -> None:
    """Commands of ip(8) within a namespace."""
    run("ip", "-n", name, "-batch", "-", stdin=commands)


def overlay(name: str, path: str, text: str, *, mode: int = 0o644) -> None:
    """A file of /etc that a namespace sees in place of the machine's."""
    file = OVERLAYS / name / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)


def pids(name: str) -> list[int]:
    """The processes of a namespace."""
    try:
        wanted = os.stat(NAMESPACES / name)
    except FileNotFoundError:
        return []
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and is_in(pid, wanted)]


def is_in(pid: str, namespace: os.stat_result) -> bool:
    """Whether a process is in this network namespace; one that has ended is in none."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), namespace)
    except OSError:
        return False


def end_all(name: str) -> list[str]:
    """Kills every process of a namespace, by its id, and waits for them; returns their command lines."""
    lines: list[str] = []
    for pid in pids(name):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, FileNotFoundError):
            continue
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)
        lines.append(line.strip() or f"process {pid}")
    return lines


def remove(name: str) -> None:
    """Removes a namespace and its files of /etc."""
    if (NAMESPACES / name).exists():
        try:
            run("ip", "netns", "delete", name)
        except RuntimeError:
            if (NAMESPACES / name).exists():  # no other session that sweeps has been quicker
                raise
    shutil.rmtree(OVERLAYS / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        OVERLAYS.rmdir()  # where nobody else has anything in it


def sweep() -> None:
    """Removes what a session left that was killed before it could clean up."""
    if not NAMESPACES.exists():
        return
    for path in NAMESPACES.iterdir():
        owner = OWN_NAME.fullmatch(path.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            end_all(path.name)
            remove(path.name)
