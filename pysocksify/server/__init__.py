"""The reference server: SOCKS4, SOCKS4a, SOCKS5 and HTTP CONNECT on one port.

Read core.py (listeners), session.py (one client), handshake.py, then what a client may ask for: connect.py (with
happy_eyeballs.py), bind.py and associate.py, and what comes of it: relaying.py or parting.py. Who may: users.py,
identd.py, access.py, permission.py. What the server does is settings.py, from files.py and cli.py (the command). How it
is run: serving.py, with listening.py and ports.py (sockets, tls.py), process.py (one process) or workers.py (several),
signals.py, systemd.py. What it counts and tells: counting.py, metrics.py, journal.py.
"""

from pysocksify.server.core import Server
from pysocksify.server.settings import Limits, ServerSettings
from pysocksify.server.users import Users

__all__ = ["Limits", "Server", "ServerSettings", "Users"]
