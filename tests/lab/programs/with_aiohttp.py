"""with_aiohttp.py URL: prints the body."""

import asyncio
import sys

import aiohttp


async def main() -> None:
    async with aiohttp.ClientSession() as session, session.get(sys.argv[1]) as response:
        print(await response.text())


asyncio.run(main())
