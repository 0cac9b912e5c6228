"""Serving a target: the handover's listening end in a service's loop. Imported while the target starts."""

import _socket
import errno
import os
from contextlib import suppress

from pysocksify import program
from pysocksify.config import Config
from pysocksify.engines.handover.listening import HandoverCall, Listening
from pysocksify.engines.preload import fit
from pysocksify.engines.service import Service
from pysocksify.kernel import Kernel
from pysocksify.report import Report
from pysocksify.supervisor.calls import CallRefused, Signalled, program_of
from pysocksify.supervisor.processes import Link


def serve(config: Config, kernel: Kernel, listener: _socket.socket, token: bytes, link: Link) -> None:
    """Serve until no descendant of the target is left and what they wrote is delivered."""
    service = Service(config, kernel, link, Signalled.TOLD)
    executions = Executions(service.report)
    listening = Listening(
        service.reactor, service.supervisor, service.report, listener, token, executed=executions.executed
    )
    link.on_no_descendants.append(service.ended)
    service.run()
    listening.close()


class Executions:
    """What the target's programs may execute: what the shim gets into."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def executed(self, call: HandoverCall, fd: int, path: bytes) -> None:
        """Answer an EXEC with the shim's object for the file. CallRefused: it isn't to run."""
        shown = os.fsdecode(path) or os.readlink(f"/proc/self/fd/{fd}")
        root = None
        with suppress(OSError):  # it can't be looked into: a script's interpreter is looked for in our own root
            root = os.open(f"/proc/{call.tid}/root", os.O_PATH | os.O_DIRECTORY)
        try:
            kind = program.kind_of_fd(fd, uid=call.uid, gid=call.gid, root=root)
        finally:
            if root is not None:
                os.close(root)
        reason = fit.unreached(kind, shown)
        if reason:
            who = program_of(call.tid)
            self._report.problem(f"exec {shown}", f"{who}: {shown} isn't run: {reason}; another engine may reach it")
            raise CallRefused(errno.EACCES)
        call.reply(0, payload=os.fsencode(fit.object_for(kind.loader)))
