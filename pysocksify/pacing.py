"""Sending inside one machine as fast as the other end takes it, also where BBR is the system's congestion control."""

import functools
import socket


def unpaced(sock: socket.socket) -> None:
    """Let a TCP socket that will send on loopback do so without a timer; before it connects or listens.

    BBR sends at the rate that it has measured, by a timer: that keeps the queues of a network short. Inside one machine
    there is nothing to be measured, and the timers cost a relay half of its throughput. Sockets that are accepted have
    what the listening one had (tcp(7), TCP_CONGESTION).
    """
    if _default_paces():
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        except OSError:  # tcp_allowed_congestion_control lacks it
            return


@functools.cache
def _default_paces() -> bool:
    try:
        with open("/proc/sys/net/ipv4/tcp_congestion_control", "rb") as file:
            return file.read().startswith(b"bbr")
    except OSError:  # not Linux, or no /proc
        return False
