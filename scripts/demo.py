"""The demonstration that `scripts/demo` runs: ncat, curl and a Python script through the bundled server.

The target is a web server on loopback called demo.test, a name that only the proxy can resolve.
"""

import http.server
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

BIN = Path(sys.executable).parent
NAME = "demo.test"
REQUEST = "GET / HTTP/1.0\r\n\r\n"
SCRIPT = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode(), end='')"


class Page(http.server.BaseHTTPRequestHandler):
    """Tells who asked."""

    def do_GET(self) -> None:
        host, port = self.client_address[:2]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(f"Hello from {NAME}: you came from {host} port {port}.\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        """The answer says it all."""


def show(words: list[str], stdin: str = "") -> bool:
    """Runs a command as the person would, the command line first; whether it succeeded."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(words, input=stdin.encode(), env=environment, stderr=subprocess.STDOUT, timeout=60)
    if done.returncode:
        print(f"(exit status {done.returncode})", flush=True)
    return done.returncode == 0


def main() -> int:
    """Runs everything; the exit status."""
    target = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=target.serve_forever, daemon=True).start()
    port = target.server_address[1]
    command = ["pysocksify-server", "--listen", "127.0.0.1:0", "--resolve", f"{NAME}=127.0.0.1", "-v"]
    print(f"A web server called {NAME} listens on port {port}; only the proxy knows its name.")
    print(f"\n$ {shlex.join(command)} &", flush=True)
    with subprocess.Popen([BIN / command[0], *command[1:]], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        first = server.stderr.readline()
        print(first, end="", flush=True)
        proxy = f"socks5://{first.split()[-1]}"
        wrapped = ["pysocksify", "-v", "-p", proxy]
        try:
            good = [
                show([*wrapped, "curl", "-sS", f"http://{NAME}:{port}/"]),
                show([*wrapped, "ncat", NAME, str(port)], stdin=REQUEST),
                show([*wrapped, "python3", "-c", SCRIPT, f"http://{NAME}:{port}/"]),
            ]
        finally:
            server.terminate()
            said = server.stderr.read()
    print(f"\nWhat the proxy saw:\n{said}", end="")
    target.shutdown()
    target.server_close()
    print("\nAll three went through." if all(good) else "\nNot all of them went through.")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
