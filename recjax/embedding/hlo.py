"""Counts what a compiled program exchanges: bytes of each collective, from its HLO text."""

import math
import re

BITS = {
    "pred": 8,
    "s8": 8,
    "u8": 8,
    "bf16": 16,
    "f16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "f64": 64,
}
KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_LINE = re.compile(r"^\s*(?:ROOT )?(%[\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


def _bytes(shapes: str) -> int:
    found = (m.groups() for m in _SHAPE.finditer(shapes))
    return (
        sum(BITS.get(t, 32) * math.prod(int(d) for d in dims.split(",") if d) for t, dims in found)
        // 8
    )


def collectives(text: str, devices: int) -> list[tuple[str, int]]:
    """(kind, bytes) of every collective in a compiled program, per device.

    Bytes are those of a ring: what goes in, an all-gather's times the devices, an all-reduce's twice.

    Args:
      text: `compiled.as_text()`.
      devices: In a group.
    """
    shape, found = {}, []
    for line in text.splitlines():
        m = _LINE.match(line)
        if not m:
            continue
        name, result, op, rest = m.groups()
        shape[name] = result
        kind = op.removesuffix("-start")
        if kind in KINDS:
            operands = re.findall(r"%[\w.\-]+", rest.split("), ")[0])
            size = sum(_bytes(shape.get(o, "")) for o in operands)
            found.append((kind, size * {"all-gather": devices, "all-reduce": 2}.get(kind, 1)))
    return found
