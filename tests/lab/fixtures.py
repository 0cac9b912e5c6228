"""Fixtures for tests of whole programs: the lab, put together once per run, and `wrap`, which runs pysocksify in it.

`tests/conftest.py` has every test see them.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.lab import accounts, clients, proxies, scripted, targets, town
from tests.lab.children import Child
from tests.lab.done import Done
from tests.lab.ways import Way
from tests.lab.wrapped import CI, Background, PlaceOf, Scripted, Servers, Wrap, command, finish, need


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that every account can read."""
    path = Path(tempfile.mkdtemp(prefix="pysocksify-lab-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def root_only() -> None:
    """Skips without root."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces and other accounts")


@pytest.fixture(scope="session")
def lab_town(root_only: None) -> Iterator[town.Town]:
    """The namespaces; at the end nothing may be left in them."""
    for tool in ("ip", "nft", "setpriv", "sysctl"):
        need(tool)
    made = town.Town()
    yield made
    left = made.close()
    assert not left, f"left running: {left}"


@pytest.fixture(scope="session")
def key(folder: Path, root_only: None) -> Path:
    """The private key for the target's sshd; its host key is beside it."""
    return folder / "ssh" / "key"


@pytest.fixture(scope="session")
def target(lab_town: town.Town, folder: Path, key: Path) -> Iterator[targets.Target]:
    """The target's services, `ssh` among them."""
    files = folder / "files"
    files.mkdir()
    clients.repository(files)
    made = targets.Target(lab_town.target, (town.TARGET, town.TARGET6), files)
    sshd, made.ports["ssh"] = proxies.sshd(lab_town.target, town.TARGET, key.parent)
    yield made
    sshd.stop()
    made.close()


@pytest.fixture(scope="session")
def built(folder: Path) -> Path:
    """The folder of the client programs."""
    failed = clients.build(folder / "clients")
    if failed and CI:
        pytest.fail(f"clients that can't be built: {failed}")
    return folder / "clients"


@pytest.fixture(scope="session")
def root_account(folder: Path, root_only: None) -> accounts.Account:
    """Root."""
    return accounts.myself(folder)


@pytest.fixture(scope="session")
def user_account(folder: Path) -> accounts.Account:
    """An ordinary user: nobody when root runs the tests, else who runs them."""
    return accounts.nobody(folder) if os.geteuid() == 0 else accounts.myself(folder)


@pytest.fixture
def user(user_account: accounts.Account) -> Way:
    """The engine that `auto` takes, as an ordinary user."""
    return Way(account=user_account)


@pytest.fixture(scope="session")
def servers(
    lab_town: town.Town, folder: Path, target: targets.Target, user_account: accounts.Account
) -> Iterator[Servers]:
    """Starts a proxy server by name at its first use; names: SERVERS of `test_programs`."""
    running: dict[str, proxies.Server] = {}
    start: dict[str, Callable[[], proxies.Server]] = {
        "microsocks": lambda: proxies.microsocks(lab_town, login=False),
        "microsocks-login": lambda: proxies.microsocks(lab_town, login=True),
        "danted": lambda: proxies.danted(lab_town, folder, login=False),
        "danted-login": lambda: proxies.danted(lab_town, folder, login=True),
        "ssh": lambda: proxies.ssh_dynamic(lab_town, folder / "ssh"),
        "bundled": lambda: proxies.bundled(lab_town, user_account, login=False),
        "bundled-login": lambda: proxies.bundled(lab_town, user_account, login=True),
    }

    def server(name: str) -> proxies.Server:
        if name not in running:
            tool = {"bundled": "", "ssh": "sshd"}.get(name.partition("-")[0], name.partition("-")[0])
            need(tool)
            running[name] = start[name]()
        return running[name]

    yield server
    for one in running.values():
        one.stop()


@pytest.fixture
def scripted_proxy(lab_town: town.Town) -> Iterator[Scripted]:
    """Makes scripted proxies on the proxy host: `scripted_proxy(delay=0.5)`."""
    made: list[scripted.ScriptedProxy] = []
    names = {name: addresses[0] for name, addresses in town.NAMES.items()}

    def make(script: scripted.Script) -> scripted.ScriptedProxy:
        proxy = scripted.ScriptedProxy(lab_town.proxy, town.PROXY, script, names)
        lab_town.admit(proxy.port)
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def wrap(lab_town: town.Town) -> Iterator[Wrap]:
    """Runs a program to its end through proxies: `wrap(way, argv, via=url)`, in the closed client by default.

    Afterwards no packet may have left past the proxies and no process may be left.
    """
    before = lab_town.leaks(), lab_town.direct()

    def wrapped(
        way: Way,
        argv: Sequence[str],
        *,
        via: str | Sequence[str] = (),
        options: Sequence[str] = (),
        namespace: str | None = None,
        starter: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 40.0,
    ) -> Done:
        line = command(way, argv, via=via, options=options, namespace=namespace or lab_town.closed, starter=starter)
        return finish(line, environment={**way.environment, **(env or {})}, stdin=stdin, timeout=timeout)

    yield wrapped
    left = lab_town.settle(lab_town.closed) + lab_town.settle(lab_town.open)
    assert not left, f"left running: {left}"
    assert (lab_town.leaks(), lab_town.direct()) == before, "packets left past the proxies"


@pytest.fixture
def background(lab_town: town.Town) -> Iterator[Background]:
    """Starts a wrapped program that goes on: `background(way, argv, via=url)`; what is left of it is ended."""
    children: list[Child] = []

    def start(
        way: Way,
        argv: Sequence[str],
        *,
        via: str | Sequence[str] = (),
        options: Sequence[str] = (),
        namespace: str | None = None,
    ) -> Child:
        line = command(way, argv, via=via, options=options, namespace=namespace or lab_town.closed)
        child = Child(*line, env=way.environment, stdin=subprocess.PIPE)
        children.append(child)
        return child

    yield start
    for child in children:
        child.stop()
    left = lab_town.settle(lab_town.closed) + lab_town.settle(lab_town.open)
    assert not left, f"left running: {left}"


@pytest.fixture
def place(target: targets.Target, built: Path, key: Path) -> PlaceOf:
    """Where a client of an account goes, by the name or address given."""

    def make(account: accounts.Account, host: str) -> clients.Place:
        own_key = account.home / "key"
        if not own_key.exists():
            shutil.copy(key, own_key)
            own_key.chmod(0o600)
            os.chown(own_key, account.uid, -1)
        return clients.Place(host=host, ports=target.ports, account=account, built=built, key=own_key)

    return make
