"""Rows of `memjax.parametric`."""

from tests.registry import Row

ROWS: list[Row] = []
