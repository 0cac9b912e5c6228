"""The preload engine: a small library in the program (LD_PRELOAD) hands its sockets over to the supervisor.

`fit` which programs it reaches, `engine` what it does in front and target, `serving` the supervisor's side. `shim.c`
is the library, built once for each libc as `shim-glibc.so` and `shim-musl.so` beside it.
"""
