"""What Python imports at its start when pysocksify's python engine wraps it: it has the sockets ask the supervisor.

Any Python may come here, so this is written for all of them, Python 2 too. Nothing of it stays to be seen: neither this
folder in sys.path nor pysocksify in sys.modules, where a program may have another one. The program's own sitecustomize
comes afterwards. A Python that can't be covered is ended: it would go past the proxy.
"""
# ruff: noqa: UP031, UP036
# mypy: ignore-errors

import os
import sys


def _refuse(why):
    text = "pysocksify: %s isn't run: %s\n" % (sys.executable or "this Python", why)
    os.write(2, text.encode("utf-8", "replace"))
    os._exit(126)


def _load(package, given, folder):
    from importlib import util

    path = os.path.join(package, "__init__.py")
    spec = util.spec_from_file_location("pysocksify", path, submodule_search_locations=[package])
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "pysocksify"}
    try:
        module = util.module_from_spec(spec)
        sys.modules["pysocksify"] = module
        spec.loader.exec_module(module)
        from pysocksify.engines.python import injected

        injected.start(given, folder)
    finally:
        for name in list(sys.modules):
            if name.partition(".")[0] == "pysocksify":
                del sys.modules[name]
        sys.modules.update(before)


def _start():
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    sys.path_importer_cache.pop(folder, None)
    given = os.environ.get("PYSOCKSIFY_HANDOVER")
    if given == "":  # an inner pysocksify catches this program
        return
    if given is None:
        _refuse("the environment doesn't say where the supervisor is")
    if sys.version_info < (3, 10):
        _refuse("it is Python %d.%d, and pysocksify's python engine needs 3.10" % sys.version_info[:2])
    if sys.implementation.name != "cpython":
        _refuse("it is %s, and pysocksify's python engine is for CPython" % sys.implementation.name)
    _load(os.path.dirname(os.path.dirname(os.path.dirname(folder))), given, folder)


def _go_on():
    """Import the program's own sitecustomize in this one's place."""
    mine = sys.modules.pop(__name__)
    try:
        __import__(__name__)
    except ImportError as error:
        if getattr(error, "name", __name__) != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, mine)


try:
    _start()
except BaseException as error:
    _refuse("its sockets can't be caught: %r" % (error,))
_go_on()
