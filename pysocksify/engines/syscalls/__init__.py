"""What the engines that see system calls share, seccomp and ptrace: which calls are caught, and what each one means.

`abi` call numbers and structures, `bpf` the filters' assembler, `filter` what is caught, `caught` a call that waits,
`memory` the target's memory, `descriptors` its sockets, `dispatch` what each call means, `datagrams` UDP's where
network namespaces can't be made.
"""
