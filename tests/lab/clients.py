"""What is wrapped: programs as people use them, and small ones of the lab's own (sources in `programs/`).

Every client asks the target's HTTP server for /peer and prints the answer, which names the address that the target saw.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.lab import town
from tests.lab.accounts import Account, readable
from tests.lab.done import Done
from tests.lab.proxies import SSH_OPTIONS
from tests.lab.targets import Event

PROGRAMS = Path(__file__).parent / "programs"
REQUEST = "GET /peer HTTP/1.0\r\n\r\n"

BUILDS: Mapping[str, tuple[str, ...]] = {
    "byname-musl": ("musl-gcc", "-static", "-O1", "-o", "{out}/byname-musl", "byname.c"),
    "byname-glibc": ("gcc", "-O1", "-o", "{out}/byname-glibc", "byname.c"),
    "rawcalls": (
        *("gcc", "-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"),
        *("-o", "{out}/rawcalls", "rawcalls.c"),
    ),
    "threads": ("gcc", "-O1", "-pthread", "-o", "{out}/threads", "threads.c"),
    "behaviour": ("gcc", "-O1", "-std=gnu11", "-o", "{out}/behaviour", "behaviour.c"),
    "gohttp": ("go", "build", "-o", "{out}/gohttp", "gohttp/main.go"),
    "gaps": ("gcc", "-O1", "-o", "{out}/gaps", "gaps.c"),
    "godial-dynamic": ("go", "build", "-ldflags=-linkmode=external", "-o", "{out}/godial-dynamic", "godial/main.go"),
    "godial": ("go", "build", "-o", "{out}/godial", "godial/main.go"),
    "java": ("javac", "-d", "{out}", "Fetch.java", "Dial.java"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a client goes: the target's host as the client names it, its ports, who runs it, the built programs."""

    host: str
    ports: Mapping[str, int]
    account: Account
    built: Path
    key: Path

    @property
    def port(self) -> str:
        """The HTTP port, as a word."""
        return str(self.ports["http"])

    @property
    def url(self) -> str:
        """The URL of /peer."""
        return f"http://{self.host}:{self.port}/peer"

    def python(self, program: str, *words: str) -> list[str]:
        """The command line of one of the Python programs."""
        return [str(self.account.python), str(self.built / program), *words]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One program: the tool it needs, its command line, how many answers it prints, what it reads.

    `kind` is what an engine may be unable to reach: `dynamic` (linked with libc), `static` or `python`. An answer
    has `shows` in it, or else the address that the target saw. `in_shell`: a shell runs the tool, and prints what it
    has written to a file.
    """

    name: str
    command: Callable[[Place], list[str]]
    kind: str = "dynamic"
    tool: str = ""
    answers: int = 1
    stdin: str = ""
    takes_names: bool = True
    service: str = "http"
    shows: str = ""
    in_shell: bool = False


def clone(place: Place) -> list[str]:
    """git clone of the target's repository, and its one file on standard output."""
    url = shlex.quote(f"http://{place.host}:{place.port}/files/repository.git")
    script = f'set -e; d=$(mktemp -d); git clone -q {url} "$d/r"; cat "$d/r/readme"; rm -rf "$d"'
    return ["sh", "-c", script]


def ssh(place: Place) -> list[str]:
    """ssh to the target's own sshd."""
    words = ["ssh", *SSH_OPTIONS, "-i", str(place.key), "-p", str(place.ports["ssh"]), f"root@{place.host}"]
    return [*words, "echo $SSH_CONNECTION"]


def aria2(place: Place) -> list[str]:
    """aria2c writes files only."""
    options = "-q --no-conf --file-allocation=none"
    script = f'set -e; d=$(mktemp -d); aria2c {options} -d "$d" -o f {shlex.quote(place.url)}; cat "$d/f"; rm -rf "$d"'
    return ["sh", "-c", script]


def nmap(place: Place) -> list[str]:
    """A scan of one port with connect()."""
    return ["nmap", "-sT", "-Pn", "-n", "-oG", "-", "-p", str(place.ports["watch"]), place.host]


def java(place: Place, *words: str) -> list[str]:
    """One of the Java programs, with a heap small enough to start several at once."""
    return ["java", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", str(place.built), *words]


CLIENTS = (
    Client(name="curl", tool="curl", command=lambda p: ["curl", "-sS", p.url]),
    Client(name="wget", tool="wget", command=lambda p: ["wget", "-q", "-O-", p.url]),
    # --no-shutdown and shut-none: microsocks ends a connection when one side of it has
    Client(name="ncat", tool="ncat", command=lambda p: ["ncat", "--no-shutdown", p.host, p.port], stdin=REQUEST),
    Client(
        name="socat",
        tool="socat",
        command=lambda p: ["socat", "-t10", "-", f"TCP:{p.host}:{p.port},shut-none"],
        stdin=REQUEST,
    ),
    Client(name="ssh", tool="ssh", command=ssh, service="ssh"),
    Client(name="git", tool="git", command=clone, in_shell=True),
    Client(name="aria2", tool="aria2c", command=aria2, in_shell=True),
    Client(name="nmap", tool="nmap", command=nmap, service="watch", shows="/open/tcp/"),
    Client(name="python-urllib", kind="python", command=lambda p: p.python("with_urllib.py", p.url)),
    Client(name="python-requests", kind="python", command=lambda p: p.python("with_requests.py", p.url)),
    Client(
        name="python-asyncio",
        kind="python",
        command=lambda p: p.python("with_asyncio.py", p.host, p.port, "20"),
        answers=20,
    ),
    Client(name="python-aiohttp", kind="python", command=lambda p: p.python("with_aiohttp.py", p.url)),
    Client(
        name="python-threads",
        kind="python",
        command=lambda p: p.python("with_threads.py", p.host, p.port, "50"),
        answers=50,
    ),
    Client(name="c-threads", tool="gcc", command=lambda p: [f"{p.built}/threads", p.host, p.port, "50"], answers=50),
    Client(name="go-http", kind="static", tool="go", command=lambda p: [f"{p.built}/gohttp", p.url, "50"], answers=50),
    Client(name="go-dial", kind="static", tool="go", command=lambda p: [f"{p.built}/godial", f"{p.host}:{p.port}"]),
    Client(name="node-fetch", tool="node", command=lambda p: ["node", f"{p.built}/fetch.mjs", p.url]),
    Client(name="node-net", tool="node", command=lambda p: ["node", f"{p.built}/net.mjs", p.host, p.port]),
    Client(name="java-httpclient", tool="javac", command=lambda p: java(p, "Fetch", p.url)),
    Client(name="java-socket", tool="javac", command=lambda p: java(p, "Dial", p.host, p.port, "0")),
    Client(name="java-socket-timeout", tool="javac", command=lambda p: java(p, "Dial", p.host, p.port, "9000")),
    Client(
        name="static-musl", kind="static", tool="musl-gcc", command=lambda p: [f"{p.built}/byname-musl", p.host, p.port]
    ),
    Client(name="glibc", tool="gcc", command=lambda p: [f"{p.built}/byname-glibc", p.host, p.port]),
    Client(
        name="raw-calls",
        kind="static",
        tool="gcc",
        command=lambda p: [f"{p.built}/rawcalls", p.host, p.port],
        takes_names=False,
    ),
)
BY_NAME = {client.name: client for client in CLIENTS}


def host(client: Client, scheme: str = "socks5") -> str:
    """How the client names the target: SOCKS4 carries addresses only."""
    return "target.test" if client.takes_names and scheme != "socks4" else town.TARGET


def check(client: Client, done: Done, seen: tuple[Event, ...], address: str = town.EXIT) -> None:
    """The program succeeded, and the target saw only the proxy."""
    assert done.status == 0, done
    assert done.err == "" or client.name.startswith("java"), done
    assert done.out.count(client.shows or address) >= client.answers, done
    peers = [event.peer for event in seen if event.service == client.service and event.peer]
    assert set(peers) <= {address}
    assert client.service == "ssh" or len(peers) >= client.answers


def build(out: Path) -> dict[str, str]:
    """Builds every program whose compiler is here and copies the scripts; returns what failed and why."""
    out.mkdir(exist_ok=True)
    for script in (*PROGRAMS.glob("*.py"), *PROGRAMS.glob("*.mjs")):
        shutil.copy2(script, out)
    environment = {**os.environ, "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
    failed: dict[str, str] = {}

    def one(name: str) -> None:
        command = [word.format(out=out) for word in BUILDS[name]]
        if shutil.which(command[0]) is None:
            failed[name] = f"{command[0]} isn't installed"
            return
        env = {**environment, "CGO_ENABLED": "1" if name == "godial-dynamic" else "0"}
        done = subprocess.run(command, cwd=PROGRAMS, env=env, capture_output=True, text=True, timeout=300)
        if done.returncode:
            failed[name] = done.stderr.strip()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, BUILDS))
    readable(out)
    return failed


def repository(folder: Path) -> None:
    """A bare git repository with one file, to be cloned over plain HTTP."""
    work, bare = folder / "work", folder / "repository.git"
    text = "echo '198.51.100.1 is what this file says' > readme"
    identity = "-c user.name=lab -c user.email=lab@target.test"
    script = (
        f"git init -q -b main {work} && cd {work} && {text} && git add readme && git {identity} commit -q -m first &&"
        f" git clone -q --bare {work} {bare} && git -C {bare} update-server-info"
    )
    subprocess.run(["sh", "-c", script], check=True, timeout=60, env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1"})
