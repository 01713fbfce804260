"""What is compared: one row a net and file, in the sizes and layouts that people have them in."""

import itertools
from typing import get_args

from tests.parity import keras_rows, tensorflow_rows, torch_rows
from tests.parity.row import Row, Size

ROWS: tuple[Row, ...] = (*torch_rows.ROWS, *keras_rows.ROWS, *tensorflow_rows.ROWS)


def nets() -> list[list[Row]]:
    """The rows in parts: those of one part are one net in several files."""
    same = itertools.groupby(ROWS, key=lambda row: (row.framework, row.net, row.arguments))
    return [list(rows) for _, rows in same]


def cases() -> list[tuple[Row, Size, bool]]:
    """Every form of every row, and whether the default run leaves it out.

    Rows of one net come together, all of one size: the net is made once for them all.
    """
    found: list[tuple[Row, Size, bool]] = []
    for rows in nets():
        small = [(row, "small", False) for row in rows if not (row.full or row.large)]
        found += [*small, *((row, "full", not row.full) for row in rows)]
    return found


def case_id(row: Row, size: Size) -> str:
    """What stands for one form of a row in the names of its tests."""
    return f"{row.name}-{size}"


def scopes() -> dict[str, str]:
    """By the `case_id` of every form: what its net has in common with no other."""
    return {
        case_id(row, size): f"{rows[0].name}-{size}"
        for rows in nets()
        for row in rows
        for size in get_args(Size)
    }
