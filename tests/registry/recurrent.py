"""Rows of `memjax.recurrent`."""

from tests.registry import Row

ROWS: list[Row] = []
