"""Conditions on the columns of a row: `where = "quantity > 0 and country != 'UK'"`, `labels = {"liked": "rating >= 4"}`.

Comparisons (==, !=, <, <=, >, >=, in, not in) of columns with numbers or quoted text, joined by and, or, not. A column whose
name is no word is written in backquotes: `Customer ID`. A missing value fulfils no comparison.
"""

import ast
from collections.abc import Collection
import dataclasses
import operator
import re

import polars as pl

from recjax.data.logs.values import as_id, as_number, is_any
from recjax.data.store.prepared import DataError

ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
REMEDY = "write it like quantity > 0 and country == 'UK'"


def is_condition(text: object) -> bool:
    """Whether a text of a mapping compares something, rather than being a value."""
    return isinstance(text, str) and bool(re.search(r"[<>]|[=!]=|\bin\b", text))


@dataclasses.dataclass(frozen=True)
class Condition:
    """Attributes:
    text: As the mapping has it.
    """

    text: str

    def __post_init__(self):
        self._walk(self._tree)

    @property
    def _names(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.text)

    @property
    def _tree(self) -> ast.expr:
        text = self.text
        for i, name in enumerate(self._names):
            text = text.replace(f"`{name}`", f"__{i}__")
        try:
            return ast.parse(text.strip(), mode="eval").body
        except SyntaxError:
            raise DataError(f"mapping: {self.text!r} is no condition; {REMEDY}") from None

    @property
    def columns(self) -> tuple[str, ...]:
        found = [n for n in ast.walk(self._tree) if isinstance(n, ast.Name | ast.Attribute)]
        inner = {id(n.value) for n in found if isinstance(n, ast.Attribute)}
        return tuple(dict.fromkeys(self._column(n) for n in found if id(n) not in inner))

    def _column(self, node: ast.expr) -> str:
        name = ast.unparse(node)  # "device.category" is a path
        quoted = re.fullmatch(r"__(\d+)__", name)
        return self._names[int(quoted[1])] if quoted else name

    def _walk(self, node: ast.expr) -> None:
        """Refuses what is no comparison of a column."""
        match node:
            case ast.BoolOp(values=parts):
                for part in parts:
                    self._walk(part)
            case ast.UnaryOp(op=ast.Not(), operand=part):
                self._walk(part)
            case ast.Compare(left=ast.Name() | ast.Attribute(), ops=[_], comparators=[right]):
                self._literal(right)
            case _:
                raise DataError(f"mapping: {self.text!r} is no condition; {REMEDY}")

    def _literal(self, node: ast.expr):
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise DataError(f"mapping: {self.text!r} compares with what is no number or quoted text; {REMEDY}") from None  # fmt: skip

    def holds(self, frame: pl.DataFrame, nulls: Collection[str]) -> pl.Series:
        """Which rows fulfil it, bool [N]."""
        return self._holds(self._tree, frame, nulls)

    def _holds(self, node: ast.expr, frame: pl.DataFrame, nulls: Collection[str]) -> pl.Series:
        match node:
            case ast.BoolOp(op=op, values=parts):
                found = [self._holds(p, frame, nulls) for p in parts]
                join = operator.and_ if isinstance(op, ast.And) else operator.or_
                out = found[0]
                for more in found[1:]:
                    out = join(out, more)
                return out
            case ast.UnaryOp(operand=part):
                return ~self._holds(part, frame, nulls)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                column, value = frame[self._column(left)], self._literal(right)
                if type(op) in ORDER:
                    return _ordered(column, ORDER[type(op)], value, nulls)
                ids = as_id(column, nulls)
                held: pl.Series = is_any(
                    ids, value if isinstance(value, list | tuple | set) else [value]
                )
                return held if isinstance(op, ast.Eq | ast.In) else ~held & ids.is_not_null()
        raise AssertionError(node)


def _ordered(x: pl.Series, compare, value, nulls: Collection[str]) -> pl.Series:
    """Numbers by size; text (dates, say) as text."""
    if isinstance(value, str):
        return compare(as_id(x, nulls), value).fill_null(False)
    return compare(as_number(x, nulls), value).fill_null(False)
