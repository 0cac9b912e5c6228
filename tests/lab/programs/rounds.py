"""rounds.py HOST PORT THREADS: for each line read, a number, so many threads make so many connects each, one by one.

Each connection says its own number to an echo service and hears it. Prints `ready PID`, then for each line how many did
and how many descriptors are open: `round 1: 2000 6`.
"""

import os
import socket
import sys
import threading

HOST, PORT, THREADS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def one(number: int, connects: int, done: list[int]) -> None:
    for turn in range(connects):
        with socket.socket() as sock:
            if turn % 2:
                sock.settimeout(30)  # connects without blocking
            sock.connect((HOST, PORT))
            said = b"%06d.%02d" % (number, turn)
            sock.sendall(said)
            heard = b""
            while len(heard) < len(said) and (piece := sock.recv(100)):
                heard += piece
            done.append(heard == said)


print(f"ready {os.getpid()}", flush=True)
for turn, line in enumerate(sys.stdin, 1):
    done: list[int] = []
    threads = [threading.Thread(target=one, args=(number, int(line), done)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"round {turn}:", sum(done), len(os.listdir("/proc/self/fd")), flush=True)
