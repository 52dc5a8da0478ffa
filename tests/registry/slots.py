"""Rows of `memjax.slots`."""

from tests.registry import Row

ROWS: list[Row] = []
