"""Frozen, slotted records for what is loaded before the target runs: `dataclass`, less what takes its time.

Importing `dataclasses` takes 7 ms and each class another half, where a bare interpreter starts in 9 (measured). To type
checkers, and to readers, `record` is `dataclasses.dataclass(frozen=True, slots=True)`; other modules use that itself.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from dataclasses import replace

    __all__ = ["record", "replace"]
else:

    def record(*, frozen, slots, kw_only=False, repr=True):
        """A class decorator; all fields are annotated in the class itself. `frozen` and `slots` must be True."""
        assert frozen
        assert slots
        return lambda cls: _made(cls, kw_only, repr)

    def replace(instance, **changes):
        """A copy with other values for some fields."""
        return type(instance)(**{name: getattr(instance, name) for name in instance.__slots__} | changes)

    def _made(cls, kw_only, with_repr):
        names = tuple(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063  # inspect is what costs
        members = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__", *names)}
        defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}
        members["__slots__"] = members["__match_args__"] = names
        # a generated __init__ is called three times as fast as one that takes **values apart
        parameters = ", ".join(f"{name}=defaults[{name!r}]" if name in defaults else name for name in names)
        body = "; ".join(f"set(self, {name!r}, {name})" for name in names)
        values = "".join(f"{{0}}.{name}, " for name in names)
        source = (
            f"def __init__(self, {'*, ' * kw_only}{parameters}): {body}\n"
            f"def __eq__(self, other):\n"
            f"    if other.__class__ is not self.__class__: return NotImplemented\n"
            f"    return ({values.format('self')}) == ({values.format('other')})\n"
            f"def __hash__(self): return hash(({values.format('self')}))\n"
        )
        exec(source, {"defaults": defaults, "set": object.__setattr__}, members)
        members["__setattr__"] = members["__delattr__"] = _refuse
        members["__getstate__"] = lambda self: [getattr(self, name) for name in names]
        if with_repr:
            members["__repr__"] = _repr
        made = type(cls)(cls.__name__, cls.__bases__, members)
        made.__qualname__ = cls.__qualname__
        return made

    def _repr(self):
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__qualname__}({values})"

    def _refuse(self, name, *value):
        raise AttributeError(f"{type(self).__qualname__}.{name} can't be changed")
