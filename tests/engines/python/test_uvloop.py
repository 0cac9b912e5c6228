"""uvloop would go past the block: it is refused, with words."""

from importlib import import_module
from typing import Any

import pytest

import pysocksify

uvloop = import_module("uvloop")


def test_uvloop_is_refused(url: str) -> None:
    with pysocksify.socksify(url):
        for use in (uvloop.new_event_loop, uvloop.install):
            with pytest.raises(ImportError, match="asyncio's own event loop"):
                use()
        code: dict[str, Any] = {}
        with pytest.raises(ImportError, match="past Python's socket module"):
            exec("import uvloop.something", code)
    loop = uvloop.new_event_loop()

    async def inside() -> None:
        with pytest.raises(ImportError, match="asyncio's own"), pysocksify.socksify(url):
            pass  # pragma: no cover

    loop.run_until_complete(inside())
    loop.close()
