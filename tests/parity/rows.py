"""What is compared: one row a net and file, in the sizes and layouts that people have them in."""

import itertools

from tests.parity import keras_rows, tensorflow_rows, torch_rows
from tests.parity.row import Row, Size

ROWS: tuple[Row, ...] = (*torch_rows.ROWS, *keras_rows.ROWS, *tensorflow_rows.ROWS)


def cases() -> list[tuple[Row, Size, bool]]:
    """Every form of every row, and whether the default run leaves it out.

    Rows of one net come together, all of one size: the net is made once for them all.
    """
    found: list[tuple[Row, Size, bool]] = []
    for _, same in itertools.groupby(ROWS, key=lambda row: (row.framework, row.net, row.arguments)):
        rows = list(same)
        small = [(row, "small", False) for row in rows if not (row.full or row.large)]
        found += [*small, *((row, "full", not row.full) for row in rows)]
    return found
