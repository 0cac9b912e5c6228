"""The ptrace engine: calls are caught by stopping the threads that make them (ptrace(2)), sockets by pidfd_getfd(2).

`tracer` the requests, with python-ptrace; `installation` of the filter in the target, `selection` its rules for where
there can't be one, `tracees` the threads and their stops, `traced` what only this engine does with calls, `fit` whether
it works here, `engine` and `serving` all of it together. `engines.syscalls` has what it shares with seccomp.
"""
