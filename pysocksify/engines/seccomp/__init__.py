"""The seccomp engine: calls are caught by SECCOMP_RET_USER_NOTIF (seccomp_unotify(2)), sockets taken by pidfd_getfd(2).

`abi` numbers and structures, `bpf` the filter's assembler, `filter` what is caught and its installation, `memory` the
target's memory, `descriptors` its sockets, `listener` notifications and answers, `dispatch` what each call means;
`numbered` and `datagrams` are UDP's where network namespaces can't be made.
"""
