"""What the engines that see system calls share, seccomp and ptrace: which calls are caught, and what each one means.

`fit` machines and programs, `abi` call numbers, `bpf` the filters' assembler, `filter` what is caught, `installation`
of it, `caught` a call that waits, `memory` the target's memory, `descriptors` its sockets, `dispatch` what each call
means, `udp` and `datagrams` the sockets and calls of UDP where network namespaces can't be made.
"""
