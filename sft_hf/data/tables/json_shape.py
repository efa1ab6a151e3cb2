"""Whether JSON rows fit into a table with one column per key."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 50  # nesting of lists and objects; Arrow's own limit is 64
MAX_COLUMNS = 10_000  # of a table, and distinct keys of JSON rows: `datasets` takes two seconds for this number
MAX_ABSENT = 10_000_000  # missing values of keys that other rows have; each takes some 40 bytes in a table
MAX_RATIO = 20  # missing values per present value; above this, keys are data rather than optional fields
LOOK_EVERY = 1000  # values

Place = tuple[str, ...]


class JsonShape:
    """The keys of the objects in a file, by position, and the number of cells an Arrow table would leave empty.

    A megabyte of lines such as {"seen": {"user 1": true}}, each with a different key, would exhaust memory.
    """

    def __init__(self) -> None:
        self._rows = self._present = self._columns = self._looked = 0
        self._keys: dict[Place, set[str]] = {}
        self._items: dict[Place, int] = {}

    def add(self, row: dict[str, Any]) -> str | None:
        """Add a row; return the problem with it, or with all rows so far."""
        self._rows += 1
        stack: list[tuple[Place, Any]] = [((), row)]
        while stack:
            place, value = stack.pop()
            if len(place) > MAX_DEPTH:
                return f"holds lists or objects more than {MAX_DEPTH} deep inside each other"
            if isinstance(value, dict):
                keys = self._keys.setdefault(place, set())
                self._columns -= len(keys)
                keys.update(value)
                self._columns += len(keys)
                self._present += len(value)
                stack += [((*place, key), part) for key, part in value.items() if isinstance(part, (dict, list))]
            else:
                inside = (*place, "[]")
                self._items[inside] = self._items.get(inside, 0) + len(value)
                stack += [(inside, part) for part in value if isinstance(part, (dict, list))]
        if self._columns <= MAX_COLUMNS and self._present < self._looked + LOOK_EVERY:
            return None
        return self._too_many()

    def _too_many(self) -> str | None:
        self._looked = self._present
        absent = self._slots() - self._present
        if self._columns <= MAX_COLUMNS and absent <= max(MAX_ABSENT, MAX_RATIO * self._present):
            return None
        place = max(self._keys, key=lambda place: len(self._keys[place]))
        where = f"the objects in {'.'.join(place)[:80]!r}" if place else "the rows"
        return (
            f"is one too many: {where} have {len(self._keys[place])} different keys so far, and each is a column; a "
            "key names the kind of its value (text, label): put what differs from row to row into values"
        )

    def _slots(self) -> int:
        """Return the number of cells in an Arrow table: a missing object has one for each of its keys as well."""
        total = 0
        for place, keys in self._keys.items():
            lists = [place[: end + 1] for end in range(len(place)) if place[: end + 1] in self._items]
            total += len(keys) * (self._items[lists[-1]] if lists else self._rows)
        return total
