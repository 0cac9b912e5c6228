"""Dialling: making a connection to a destination through a chain.

`hops` is the only loop over hops and knows no I/O; `transport` performs its steps on the reactor's sockets.
"""
