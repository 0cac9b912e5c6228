"""Proxy servers made by others, and the bundled one, started on the town's proxy host.

Every server gets the name `target.test` from its own /etc/hosts. Ports are free ones of a network namespace that only
this test run uses.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.lab.accounts import Account
from tests.lab.children import Child
from tests.lab.town import PASSWORD, PROXY, PROXY6, PROXY_FROM_OPEN, USER, Town, free_port

DANTED = """
logoutput: stderr
errorlog: stderr
{internal}
external: target
clientmethod: none
socksmethod: {method}
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0/0 to: 0/0 }}
client pass {{ from: ::/0 to: ::/0 }}
socks block {{ from: 0/0 to: 198.51.100.201/32 }}
socks pass {{ from: 0/0 to: 0/0 command: connect }}
socks pass {{ from: 0/0 to: ::/0 command: connect }}
"""

SSHD = """
ListenAddress {address}:{port}
HostKey {folder}/host
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
AuthenticationMethods publickey
AuthorizedKeysFile {folder}/key.pub
AllowTcpForwarding yes
MaxStartups 200
MaxSessions 200
Subsystem sftp internal-sftp
"""

SSH_OPTIONS = (
    *("-F", "none"),
    *("-o", "StrictHostKeyChecking=no"),
    *("-o", "UserKnownHostsFile=/dev/null"),
    *("-o", "GlobalKnownHostsFile=/dev/null"),
    *("-o", "IdentitiesOnly=yes"),
    *("-o", "BatchMode=yes"),
    *("-o", "LogLevel=ERROR"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running proxy: its name, its TCP port on the proxy host, what it speaks and whether it wants a login."""

    name: str
    port: int
    schemes: tuple[str, ...]
    login: bool
    children: tuple[Child, ...]

    def url(self, scheme: str, host: str = PROXY) -> str:
        """How a client names it; from the open client use `PROXY_FROM_OPEN`."""
        user = f"{quote(USER)}:{quote(PASSWORD, safe='')}@" if self.login else ""
        bracketed = f"[{host}]" if ":" in host else host
        return f"{scheme}://{user}{bracketed}:{self.port}"

    def stop(self) -> None:
        """Ends it."""
        for child in reversed(self.children):
            child.stop()


def microsocks(town: Town, *, login: bool) -> Server:
    """microsocks: SOCKS5."""
    port = free_port(town.proxy, PROXY)
    words = ["-u", USER, "-P", PASSWORD] if login else []
    child = Child("microsocks", "-i", "0.0.0.0", "-p", str(port), *words, namespace=town.proxy)
    return ready(town, child, name="microsocks", port=port, schemes=("socks5",), login=login)


def danted(town: Town, folder: Path, *, login: bool) -> Server:
    """Dante's server: SOCKS4 and SOCKS5, or SOCKS5 with a login that it looks up in the host's shadow file."""
    port = free_port(town.proxy, PROXY)
    internal = "\n".join(f"internal: {host} port = {port}" for host in (PROXY, PROXY_FROM_OPEN, PROXY6))
    config = folder / f"danted-{port}.conf"
    config.write_text(DANTED.format(internal=internal, method="username" if login else "none"), encoding="utf-8")
    child = Child("danted", "-f", config, "-p", folder / f"danted-{port}.pid", namespace=town.proxy)
    schemes = ("socks5",) if login else ("socks4", "socks5")  # it answers a SOCKS4a request with 91
    return ready(town, child, name="danted", port=port, schemes=schemes, login=login)


def bundled(town: Town, account: Account, *, login: bool) -> Server:
    """The bundled server."""
    port = free_port(town.proxy, PROXY)
    words = ["--user", f"{USER}:{PASSWORD}"] if login else ["--open"]
    command = account.command(*account.server, "--listen", f"0.0.0.0:{port}", *words)
    child = Child(*command, namespace=town.proxy, env=account.environment)
    schemes = ("socks5", "http") if login else ("socks4", "socks4a", "socks5", "http")
    return ready(town, child, name="bundled", port=port, schemes=schemes, login=login)


def sshd(namespace: str, address: str, folder: Path) -> tuple[Child, int]:
    """An OpenSSH server that takes `folder`/key for root; returns it and its port."""
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "key"):
        if not (folder / name).exists():
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True, timeout=30)
    port = free_port(namespace, address)
    config = folder / f"sshd-{port}.conf"
    config.write_text(SSHD.format(address=address, port=port, folder=folder), encoding="utf-8")
    child = Child("/usr/sbin/sshd", "-D", "-e", "-f", config, namespace=namespace)
    child.wait_listening(port)
    return child, port


def ssh_dynamic(town: Town, folder: Path) -> Server:
    """`ssh -D`: SOCKS4, 4a and 5; both of its ends are on the proxy host."""
    server, ssh_port = sshd(town.proxy, "127.0.0.1", folder)
    port = free_port(town.proxy, PROXY)
    client = Child(
        *("ssh", *SSH_OPTIONS, "-N", "-i", folder / "key", "-p", str(ssh_port)),
        *("-D", f"0.0.0.0:{port}", "root@127.0.0.1"),
        namespace=town.proxy,
    )
    schemes = ("socks4", "socks4a", "socks5")
    return ready(town, server, client, name="ssh", port=port, schemes=schemes, login=False)


def ready(town: Town, *children: Child, name: str, port: int, schemes: Sequence[str], login: bool) -> Server:
    """The server once it listens, with its port open for the closed client."""
    server = Server(name=name, port=port, schemes=tuple(schemes), login=login, children=children)
    try:
        children[-1].wait_listening(port)
    except BaseException:
        server.stop()
        raise
    town.admit(port)
    return server
