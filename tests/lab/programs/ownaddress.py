"""ownaddress.py ADDRESS: connects to ADDRESS, one of this machine's, from a socket bound to loopback; says who came."""

import socket
import sys

for blocking in (True, False):
    with socket.create_server((sys.argv[1], 0)) as server, socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(blocking)
        server.settimeout(10)
        try:
            sock.connect(server.getsockname())
        except BlockingIOError:
            assert not blocking
        other, name = server.accept()
        print("itself" if name == sock.getsockname() else name)
        other.close()
