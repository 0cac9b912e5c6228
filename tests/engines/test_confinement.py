"""Where namespaces can't be had: real programs find names there, and nothing leaves."""

import os
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path

import pytest

from pysocksify.engines.syscalls import filter
from tests.engines.confinement import (
    FIRST,
    dissolve,
    each_account,
    each_kernel,  # noqa: F401
    four,
    run,
    six,
)
from tests.engines.filtered import PATIENCE, as_account
from tests.lab.wrapped import missing

pytestmark = pytest.mark.usefixtures("each_kernel")

MUSL = r"""
#include <netdb.h>
#include <stdio.h>
int main(int count, char **words) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(words[1], "443", &hints, &found);
    if (error) return puts(gai_strerror(error)), 1;
    for (; found; found = found->ai_next) {
        char host[64];
        getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, 0, 0, NI_NUMERICHOST);
        puts(host);
    }
}
"""
GO = """
package main

import ("fmt"; "net"; "os"; "sync")

func main() {
	found, err := net.LookupHost(os.Args[1])
	if err != nil { panic(err) }
	fmt.Println(found[0])
	var all sync.WaitGroup
	for i := 0; i < 300; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			if _, err := net.LookupHost(fmt.Sprintf("n%d.example.com", i)); err != nil { panic(err) }
		}()
	}
	all.Wait()
}
"""
JAVA = """
public class Names {
    public static void main(String[] words) throws Exception {
        System.out.println(java.net.InetAddress.getAllByName(words[0])[0].getHostAddress());
    }
}
"""
NODE = """
const dns = require("dns"), name = process.argv[1]
dns.resolve4(name, (error, found) => {
    console.log(error || found[0])
    dns.lookup(name, (error, found) => console.log(error || found))
})
"""
PYTHON = """
import socket, sys
print(socket.getaddrinfo(sys.argv[1], 443, type=socket.SOCK_STREAM)[0][4][0])
"""


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """A folder for everyone, with the sources, and programs where their compilers are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file, text in (("musl.c", MUSL), ("names.go", GO), ("Names.java", JAVA)):
            (folder / file).write_text(text)
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
        for command in (
            ["musl-gcc", "-static", "-o", "musl", "musl.c"],
            ["go", "build", "-o", "names", "names.go"],
            ["javac", "Names.java"],
        ):
            if shutil.which(command[0]):
                subprocess.run(command, cwd=folder, env=environment, check=True, timeout=50)
        yield folder


PROGRAMS = {
    "dig": ["dig", "+short", "+tries=1", "+time=5", "example.com"],
    "dig, unconnected": ["dig", "+short", "+tries=1", "+time=5", "@2001:db8::53", "example.com"],
    "nslookup": ["nslookup", "-type=a", "example.com"],
    "busybox": ["busybox", "nslookup", "example.com"],
    "glibc": ["getent", "ahosts", "example.com"],
    "musl": ["./musl", "example.com"],
    "go": ["./names", "example.com"],
    "node": ["node", "-e", NODE, "example.com"],
    "java": ["java", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", ".", "Names", "example.com"],
    "python": ["/usr/bin/python3", "-c", PYTHON, "example.com"],
}


@each_account
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, uid: int, built: Path) -> None:
    command = PROGRAMS[name]
    if not (shutil.which(command[0]) or (built / command[0]).exists()):
        missing(f"{command[0]} isn't here")
    read, write = os.pipe()

    def act() -> None:
        os.dup2(write, 1)
        os.chdir(built)
        os.execvp(command[0], command)

    # IPv4 first: glibc sorts by what connect() and getsockname() say, and a UDP socket is connected for each address
    run(uid, act)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        words = pipe.read().split()
    found = [word for word in words if word.startswith(("198.18.", "fd"))]
    assert found, words
    assert found[0] == FIRST


ENGINE = """
import sys
from pysocksify import config, front
from pysocksify.engines.seccomp.engine import SeccompEngine
from pysocksify.kernel import Kernel
from pysocksify.options import parse

given = parse(["-p", "socks5://127.0.0.1:1", *sys.argv[1:]])
engine = SeccompEngine(config.load(given, {}), Kernel(enclosure=False))
sys.exit(front.run(list(given.command), engine, write_line=lambda line: print(line, file=sys.stderr)))
"""
OWN_NUMBERS = """
import socket
print([socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach() for _ in range(2)])
"""


@pytest.mark.parametrize(("limit", "numbers"), [(1024, [1023, 1022]), (400, [399, 398])])
def test_the_command_does_without_namespaces(limit: int, numbers: list[int]) -> None:
    """The numbers lie below the limit that the command is started with."""
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, sys.executable, "-c", OWN_NUMBERS],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == (f"{numbers}\n", "")


class World:
    """A network namespace whose default route leads to a wire that is watched. Needs root; for a forked child."""

    def __init__(self) -> None:
        assert CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
        for words in (
            "link set lo up",
            "link add wire type veth peer name far",
            "link set wire addrgenmode none",
            "link set wire up",
            "link set far up",
            "address add 192.0.2.2/24 dev wire",
            "address add 2001:db8::2/64 dev wire nodad",
            "address add fe80::2/64 dev wire nodad",
            "route add default via 192.0.2.1",
            "route add default via 2001:db8::1",
            "neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev wire",
            "neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev wire",
        ):
            subprocess.run(["ip", *words.split()], check=True, timeout=10)
        self.wire = socket.if_nametoindex("wire")
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._tap.bind(("far", 3))  # ETH_P_ALL

    def seen(self) -> list[bytes]:
        """The packets that came out, but ARP and those of ICMPv6 that the kernel sends for itself."""
        packets = []
        while select.select([self._tap], [], [], 0.1)[0]:
            packet, (_, kind, *_) = self._tap.recvfrom(2048)
            own = kind == 0x0806 or (kind == 0x86DD and (packet[6] == socket.IPPROTO_ICMPV6 or packet[6] == 0))
            if not own:
                packets.append(packet)
        return packets


def ways_out(wire: int) -> list[Callable[[], object]]:
    """What gets a packet past a socket's binding to `lo`, or would send one if there were none."""
    ipv4, ipv6 = ("192.0.2.1", 99), ("2001:db8::1", 99)

    def bound_to_link_local(name: tuple[str, int]) -> None:
        sock = socket.socket(six, socket.SOCK_DGRAM)
        sock.bind(("fe80::2", 0, 0, wire))
        sock.sendto(b"out", name)

    def dissolved() -> None:
        sock = socket.socket(four, socket.SOCK_DGRAM)
        sock.connect(ipv4)
        dissolve(sock)
        sock.sendto(b"out", ipv4)

    def device(option: int, value: bytes | int) -> None:
        sock = socket.socket(four, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, option, value)
        sock.sendto(b"out", ipv4)

    def duplicated(name: tuple[str, int]) -> None:
        sock = socket.socket(four, socket.SOCK_DGRAM)
        os.dup2(sock.fileno(), 60)
        socket.socket(fileno=60).sendmsg([b"out"], [(socket.IPPROTO_IP, 8, struct.pack("=i8x", wire))], 0, name)

    def message(family: int, level: int, kind: int, data: bytes, name: tuple[str, int]) -> None:
        socket.socket(family, socket.SOCK_DGRAM).sendmsg([b"out"], [(level, kind, data)], 0, name)

    in4, in6 = struct.pack("=i8x", wire), struct.pack("=16xi", wire)
    group = socket.inet_aton("239.1.2.3") + struct.pack("=4si", bytes(4), wire)
    return [
        lambda: socket.socket(four, socket.SOCK_DGRAM).sendto(b"out", ("192.0.2.1", 53)),
        lambda: socket.socket(four, socket.SOCK_DGRAM).sendto(b"out", ipv4),
        lambda: socket.socket(six, socket.SOCK_DGRAM).sendto(b"out", ("2001:db8::1", 53)),
        lambda: socket.socket(six, socket.SOCK_DGRAM).sendto(b"out", ipv6),
        lambda: message(four, socket.IPPROTO_IP, 8, in4, ipv4),
        lambda: message(four, socket.IPPROTO_IP, 8, in4, ("192.0.2.1", 53)),
        lambda: message(six, socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, in6, ipv6),
        lambda: bound_to_link_local(("2001:db8::1", 53)),
        lambda: bound_to_link_local(ipv6),
        dissolved,
        lambda: duplicated(ipv4),
        lambda: device(socket.SO_BINDTODEVICE, b"wire\0"),
        lambda: device(filter.SO_BINDTOIFINDEX, wire),
        lambda: socket.socket(four, socket.SOCK_DGRAM).setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group),
        lambda: socket.socket(four, socket.SOCK_DGRAM).sendto(b"out", ("255.255.255.255", 99)),
        lambda: socket.socket(four, socket.SOCK_DGRAM).sendto(b"out", ("239.1.2.3", 99)),
    ]


def try_ways_out(wire: int) -> None:
    for way in ways_out(wire):
        with suppress(OSError):
            way()
    for host in ("192.0.2.1", "2001:db8::1"):
        with suppress(OSError), socket.socket(six if ":" in host else four, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 99))
            sock.send(b"out")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
class TestWaysOut:
    def test_without_the_filter_there_are_many(self) -> None:
        def act() -> None:
            world = World()
            try_ways_out(world.wire)
            assert len(world.seen()) > 10

        as_account(0, act)

    @each_account
    def test_nothing_leaves(self, uid: int) -> None:
        def act() -> None:
            world = World()
            run(uid, lambda: try_ways_out(world.wire), said="can't", times=2)
            assert world.seen() == []

        as_account(0, act)
