"""How a wrapped program ended."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a wrapped program ended: its status (negative: a signal, as subprocess has it) and what it wrote."""

    status: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"status {self.status}\n--- out ---\n{self.out[-3000:]}\n--- err ---\n{self.err[-3000:]}"

    @property
    def refused(self) -> bool:
        """Whether pysocksify didn't run the program, and said why in one line."""
        return self.status in (125, 126) and not self.out and len(self.err.splitlines()) == 1

    @property
    def values(self) -> dict[str, str]:
        """The `name=value` words of what it wrote."""
        return dict(word.split("=", 1) for word in self.out.split() if "=" in word)
