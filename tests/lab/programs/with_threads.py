"""with_threads.py HOST PORT COUNT: so many threads resolve, connect and GET; prints the answers."""

import socket
import sys
import threading

HOST, PORT, COUNT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
answers: list[str] = []


def one() -> None:
    with socket.create_connection((HOST, PORT), timeout=20) as sock:
        sock.sendall(b"GET /peer HTTP/1.0\r\n\r\n")
        answer = b""
        while data := sock.recv(4096):
            answer += data
    answers.append(answer.decode())


threads = [threading.Thread(target=one) for _ in range(COUNT)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("\n".join(answers))
sys.exit(len(answers) != COUNT)
