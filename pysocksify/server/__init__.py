"""The reference server: SOCKS4, SOCKS4a, SOCKS5 and HTTP CONNECT on one port.

Read core.py (listeners), session.py (one client), happy_eyeballs.py (one destination), cli.py (the command).
"""

from pysocksify.server.core import Server, ServerSettings

__all__ = ["Server", "ServerSettings"]
