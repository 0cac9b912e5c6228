"""with_socket.py PROGRAM ARGS…: becomes the program with a TCP socket open, whose number is in SOCKET."""

import os
import socket
import sys

sock = socket.socket()
sock.set_inheritable(True)
os.environ["SOCKET"] = str(sock.fileno())
os.execvp(sys.argv[1], sys.argv[1:])
