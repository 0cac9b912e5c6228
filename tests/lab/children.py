"""Programs that the lab starts: their log, their readiness, their end."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PATIENCE = 15.0  # seconds until a server must be ready or gone
LISTEN = "0A"  # TCP_LISTEN as /proc/net/tcp prints it


class Child:
    """A program in a session of its own, from construction to `stop()`; its output is `log`.

    It is ended with its whole process group (servers fork), by id.
    """

    def __init__(
        self,
        *argv: str | Path,
        namespace: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.argv = within(namespace, argv)
        self.process = subprocess.Popen(
            self.argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name=f"log of {argv[0]}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self._lines.append(line.decode(errors="replace"))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    @property
    def log(self) -> str:
        """What it has written so far, both streams."""
        with self._more:
            return "".join(self._lines)

    def wait_line(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Waits until a line of its log matches; raises TimeoutError with the log."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout
        seen = 0
        with self._more:
            while True:
                for line in self._lines[seen:]:
                    if match := expression.search(line):
                        return match
                seen = len(self._lines)
                if self._ended or not self._more.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"{self.argv}: no line matches {pattern!r}:\n{''.join(self._lines)}")

    def wait_listening(self, port: int, timeout: float = PATIENCE) -> None:
        """Waits until something in its network namespace listens on this TCP port."""
        deadline = time.monotonic() + timeout
        while not listens(self.pid, port):
            try:
                status = self.process.wait(0.01)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                raise TimeoutError(f"{self.argv} doesn't listen on {port}:\n{self.log}") from None
            self._reader.join(PATIENCE)
            raise RuntimeError(f"{self.argv} ended with {status}:\n{self.log}")

    def tell(self, line: str) -> None:
        """Writes a line to its standard input, a pipe; harmless when it has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Waits for its end; returns its exit status as subprocess gives it."""
        return self.process.wait(timeout)

    def stop(self) -> None:
        """Asks it to end, then makes it; harmless when it has ended."""
        if self.process.poll() is None:
            signal_group(self.pid, signal.SIGTERM)
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                signal_group(self.pid, signal.SIGKILL)
                self.process.wait(PATIENCE)
        signal_group(self.pid, signal.SIGKILL)
        self._reader.join(PATIENCE)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended before it read all
                self.process.stdin.close()


def within(namespace: str | None, argv: Sequence[str | Path]) -> list[str]:
    """The command line that runs in a network namespace (None: here)."""
    words = [str(word) for word in argv]
    return words if namespace is None else ["ip", "netns", "exec", namespace, *words]


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signals what is left of a session that the lab started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def listens(pid: int, port: int) -> bool:
    """Whether a TCP socket listens on this port in the network namespace of a process."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False
