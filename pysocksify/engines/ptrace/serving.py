"""Serving a target: its threads' stops and their dispatch in a service's loop. Imported while the target starts."""

from pysocksify.config import Config
from pysocksify.engines.ptrace.traced import TracedCalls
from pysocksify.engines.ptrace.tracees import Tracees
from pysocksify.engines.service import Service
from pysocksify.engines.syscalls import abi
from pysocksify.engines.syscalls.descriptors import Descriptors
from pysocksify.kernel import Kernel
from pysocksify.supervisor.calls import Signalled
from pysocksify.supervisor.processes import Link


def serve(config: Config, kernel: Kernel, arch: abi.Architecture, link: Link, unfiltered: str) -> None:
    """Serve until no descendant is left and what they wrote is delivered. `unfiltered`: why there's no filter."""
    # a tracer can't install the sockets that are made in the enclosure
    service = Service(config, kernel.without(("enclosure",)), link, Signalled.LOOKED_FOR)
    if unfiltered:
        service.report.connection(f"each call of the program stops, which is slow: {unfiltered}")
    link.on_no_descendants.append(service.ended)
    calls = TracedCalls(service.reactor, arch, service.supervisor, service.report, Descriptors())
    Tracees(arch, link, plain=bool(unfiltered)).attach(calls.received, calls.interrupted)
    service.run()
