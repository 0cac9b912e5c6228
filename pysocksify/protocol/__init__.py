"""SOCKS4, SOCKS4a, SOCKS5 and HTTP CONNECT, for client and server, without any I/O.

Read `conversation` first: it says what a protocol asks for and how bytes get to it. Then one protocol (`socks4` is the
shortest), then `serve`, which tells the protocols apart for a server, and `socks5_udp`, whose datagrams are no
conversation.
"""
