"""The lab: real servers, targets and client programs for the tests that run whole programs.

Reading order: `town` (network namespaces: who can reach whom), `children` (programs started and ended), `accounts`
(the same run as root and as an ordinary user), `targets` (what is connected to), `proxies` (microsocks, danted, ssh -D,
the bundled server), `certificates` (for TLS), `scripted` (a SOCKS5 proxy that misbehaves as told), `clients` (what is
wrapped; sources in `programs/`), `ways` (by which engine, as whom, in which surroundings), `surroundings` (filters as
containers have them), `wrapped` (command lines of pysocksify). The fixtures that put them together are in `fixtures`.

Nothing here sleeps: readiness is a line in a log or a listening socket, an end is a process waited for.
"""
