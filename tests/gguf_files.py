"""Builds GGUF files byte by byte, right and wrong ones."""

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
NUMBERS = {
    U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q",
    I64: "q", F64: "d",
}  # fmt: skip


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def payload(kind, value):
    return string(value) if kind == STRING else struct.pack("<" + NUMBERS[kind], value)


def array(kind, items, length=None):
    """An array's element type, length and elements; the items of `ARRAY` are bytes already."""
    raw = b"".join(item if kind == ARRAY else payload(kind, item) for item in items)
    return struct.pack("<iQ", kind, len(items) if length is None else length) + raw


def key(name, kind, value):
    """A key and its value; that of `ARRAY` is made by `array`."""
    raw = value if kind == ARRAY or isinstance(value, bytes) else payload(kind, value)
    return string(name) + struct.pack("<i", kind) + raw


def info(name, extents=(2,), kind=0, offset=0, ndim=None):
    """A tensor's description; `extents` as the file has them, the innermost first."""
    return (
        string(name)
        + struct.pack("<I", len(extents) if ndim is None else ndim)
        + struct.pack(f"<{len(extents)}q", *extents)
        + struct.pack("<iQ", kind, offset)
    )


def gguf(keys=(), infos=(), data=b"", alignment=32, version=3, counts=None, magic=b"GGUF"):
    """A file; `data` begins at the next multiple of `alignment`, if there is any."""
    tensors, entries = counts or (len(infos), len(keys))
    header = magic + struct.pack("<IQQ", version, tensors, entries) + b"".join([*keys, *infos])
    return header + (bytes(-len(header) % alignment) + data if data else b"")
