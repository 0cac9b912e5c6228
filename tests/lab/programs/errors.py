"""errors.py HOST PORT [HOST PORT…]: blocking connects one after the other; prints each one's errno by name, or 0."""

import errno
import socket
import sys

for host, port in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        print(f"getaddrinfo: {error}")
        continue
    with socket.socket(family, kind, protocol) as sock:
        print(errno.errorcode.get(sock.connect_ex(address), "0"))
