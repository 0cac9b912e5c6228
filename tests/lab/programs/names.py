"""names.py NAME: what each of Python's ways to ask for names and addresses answers, as one JSON object."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

name = sys.argv[1]


def addresses(host: str, family: int = 0) -> list[str]:
    with suppress(socket.gaierror):
        return [str(found[4][0]) for found in socket.getaddrinfo(host, 80, family, socket.SOCK_STREAM)]
    return []


fake = addresses(name, socket.AF_INET)[0]
with ThreadPoolExecutor(20) as pool:
    threads = list(pool.map(lambda number: addresses(f"host-{number}.test", socket.AF_INET)[0], range(100)))
result = {
    "any": addresses(name),
    "ipv4": fake,
    "again": addresses(name.upper(), socket.AF_INET),
    "ipv6": addresses(name, socket.AF_INET6),
    "byname": socket.gethostbyname(name),
    "byname_ex": socket.gethostbyname_ex(name)[2],
    "byaddr": socket.gethostbyaddr(fake)[0],
    "nameinfo": socket.getnameinfo((fake, 80), socket.NI_NUMERICSERV)[0],
    "numeric": addresses("192.0.2.77"),
    "localhost": addresses("localhost", socket.AF_INET),
    "sub.localhost": addresses("sub.localhost", socket.AF_INET),
    "different": len(set(threads)),
}
print(json.dumps(result))
