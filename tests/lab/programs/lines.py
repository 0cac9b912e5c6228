"""lines.py HOST PORT: for each line on standard input connects and says `connected` or the errno by name."""

import errno
import os
import socket
import sys

print(f"ready {os.getpid()}", flush=True)
for _ in sys.stdin:
    with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_STREAM) as sock:
        error = sock.connect_ex((sys.argv[1], int(sys.argv[2])))
        print(errno.errorcode[error] if error else "connected", flush=True)
