"""The preload engine: a small library in the program (LD_PRELOAD) hands its sockets over to the supervisor.

`fit` which programs it reaches, `engine` what it does in front and target, `serving` the supervisor's side. The library
is in C: `shim.h` says how it works, and the other sources are built, once for each libc, as `shim-glibc.so` and
`shim-musl.so` beside them.
"""
