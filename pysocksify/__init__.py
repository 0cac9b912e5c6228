"""Run any program with its connections going through SOCKS and HTTP proxies.

The package in the order to read it; each part imports only from those before it:

1. `codes`, `record`, `linux`, `address`: numbers of the specifications, plain records, system calls; what a connection
   goes to.
2. `errors`: every exception, and the one table from causes to errno, SOCKS and HTTP codes.
3. `protocol`: SOCKS4, SOCKS4a, SOCKS5 and HTTP CONNECT for client and server, without any I/O.
4. `route`: chains of proxies, rules that choose one, fake addresses that stand for names.
5. `config`, `options`: files, proxy URLs, environment and command line become one frozen Config.
6. `reactor`, `report`, `dial`, `relay`: the event loop, the one loop over hops, the pump between two sockets.
7. `server`: the reference server.
8. `supervisor`: the target's requests and what is answered to them.
9. `engines`: how the target's calls reach the supervisor.
10. `program`, `front`, `cli`: the program that is run, the process that stands for it, the commands.
"""

__version__ = "0.1.0"
