"""with_asyncio.py HOST PORT COUNT: so many connections at once with asyncio streams; prints the answers."""

import asyncio
import sys


async def get(host: str, port: int) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /peer HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def main() -> None:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for answer in await asyncio.gather(*(get(host, port) for _ in range(count))):
        print(answer)


asyncio.run(main())
