"""Serving a target: the handover's listening end in a service's loop. Imported while the target starts."""

import _socket
import os

from pysocksify.config import Config
from pysocksify.engines.handover.listening import HandoverCall, Listening
from pysocksify.engines.python import fit
from pysocksify.engines.service import Service
from pysocksify.kernel import Kernel
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.processes import Link

NOTICE_MOST = 8192  # bytes of a line


def serve(config: Config, kernel: Kernel, listener: _socket.socket, token: bytes, link: Link, notice: int) -> None:
    """Serve until no descendant of the target is left and what they wrote is delivered.

    `notice` is a pipe with a line for the person, or with nothing.
    """
    service = Service(config, kernel, link, Signalled.TOLD)
    said = os.read(notice, NOTICE_MOST).decode("utf-8", "surrogateescape")
    os.close(notice)
    if said:
        service.report.problem("notice", said)

    def executed(call: HandoverCall, fd: int, path: bytes) -> None:
        service.report.problem("notice", fit.about_shell(os.fsdecode(path)))
        call.answer(0)

    listening = Listening(service.reactor, service.supervisor, service.report, listener, token, executed=executed)
    link.on_no_descendants.append(service.ended)
    service.run()
    listening.close()
