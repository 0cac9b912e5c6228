"""The seccomp engine: calls are caught by SECCOMP_RET_USER_NOTIF (seccomp_unotify(2)), sockets taken by pidfd_getfd(2).

`unotify` numbers and structures, `installation` of the filter in the target, `listener` notifications and answers,
`notified` what only this engine does with calls, `numbered` UDP's descriptors where network namespaces can't be made,
`adopted` and `adopting` sockets where pidfd_getfd(2) is refused, `engine` and `serving` all of it
together. `engines.syscalls` has what it shares with ptrace.
"""
