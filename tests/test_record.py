"""record: what a frozen, slotted dataclass is, it is too."""

from dataclasses import dataclass
from typing import Any

import pytest

import pysocksify.record
from pysocksify.record import record, replace


@record(frozen=True, slots=True, kw_only=True)
class Point:
    """A record."""

    x: int
    y: int = 2

    @property
    def sum(self) -> int:
        """A property."""
        return self.x + self.y

    @classmethod
    def at(cls, x: int) -> "Point":
        """A class method."""
        return cls(x=x)


@record(frozen=True, slots=True)
class Pair:
    """Taken by position too."""

    first: str
    second: str = "b"


@record(frozen=True, slots=True, repr=False)
class Secret:
    """With a repr of its own."""

    value: str

    def __repr__(self) -> str:
        return "<Secret>"


@dataclass(frozen=True, slots=True)
class Model:
    """What Pair is to be like."""

    first: str
    second: str = "b"


def test_fields_defaults_and_members() -> None:
    point = Point(x=1)
    assert (point.x, point.y, point.sum, Point.at(5).x) == (1, 2, 3, 5)
    assert Pair("a") == Pair(first="a", second="b")
    assert Point.__doc__ == "A record."
    assert not hasattr(point, "__dict__")


def test_equality_and_hash_are_by_value_and_class() -> None:
    assert Point(x=1) == Point(x=1, y=2)
    assert hash(Point(x=1)) == hash(Point(x=1, y=2))
    assert Point(x=1) != Point(x=2)
    assert {Pair("a"): 1}[Pair("a", "b")] == 1
    other: Any = Model("a")
    assert Pair("a") != other


def test_text_is_as_a_dataclass_has_it() -> None:
    assert repr(Pair("a")) == repr(Model("a")).replace("Model", "Pair")
    assert repr(Secret("x")) == "<Secret>"


def test_nothing_can_be_changed() -> None:
    point: Any = Point(x=1)
    with pytest.raises(AttributeError, match=r"Point\.x can't be changed"):
        point.x = 3
    with pytest.raises(AttributeError):
        del point.x
    with pytest.raises(AttributeError):
        point.z = 3


def test_wrong_arguments_are_type_errors() -> None:
    point: Any = Point
    for arguments in ((1,), ()):
        with pytest.raises(TypeError):
            point(*arguments)


def test_replace_makes_a_copy() -> None:
    assert replace(Point(x=1), y=9) == Point(x=1, y=9)


def test_matching_by_position() -> None:
    match Pair("a", "c"):
        case Pair(first, second):
            assert (first, second) == ("a", "c")


def test_the_module_doesn_t_load_dataclasses() -> None:
    assert "dataclasses" not in vars(pysocksify.record)
