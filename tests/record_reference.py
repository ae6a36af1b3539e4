"""Blocks of ggml as `records` describes them, one field at a time, for tests of kernels."""

import math

import ml_dtypes
import numpy as np

from quantarray.formats import Integer

F = np.float32


def read(runs, data, count):
    """Give the fields of a block."""
    found = [0] * count
    for run in runs:
        for unit in range(run.units):
            for i in range(run.unit * run.parts):
                byte = int(data[run.start + unit * run.stride + i % run.unit])
                part = i // run.unit
                if run.base == 3:
                    field = byte * 3**part % 256 * 3 >> 8
                else:
                    field = (byte >> (run.right + run.bits * part)) & ((1 << run.bits) - 1)
                found[run.first + unit * run.fields + i] |= field << run.left
    return found


def half(runs, data):
    return np.uint16(read(runs, data, 1)[0]).view(np.float16).astype(F)


def values_of(record, data):
    """Give the values of a block's codes."""
    lattice, element = record.lattice, record.element
    if lattice is None:
        codes = np.asarray(read(record.codes, data, record.elements))
        if not isinstance(element, Integer):
            return np.asarray(element.table, F)[codes]
        codes = codes.astype(np.int8) if element.signed else codes
        return ((codes - element.origin) / element.steps).astype(F)
    entries = record.elements // lattice.width
    values = lattice.table[read(record.codes, data, entries)].astype(F)
    if record.deltas:
        deltas = np.asarray(read(record.deltas, data, entries))
        values += np.where(deltas, F(-0.125), F(0.125))[:, None]
    values = values.reshape(-1, 8)
    if record.signs:
        for row, sign in zip(values, read(record.signs, data, len(values)), strict=True):
            negative = [sign >> bit & 1 for bit in range(8)]
            if record.sign_bits == "parity":
                negative[7] = sum(negative[:7]) % 2
            row[np.asarray(negative, bool)] *= -1
    return values.reshape(-1)


def decoded(record, data):
    """Decode one block: ``s * v + m``, rounded to float32 each time."""
    scale = np.full(record.groups, half(record.base, data) if record.base else F(1))
    if record.scales:
        codes = read(record.scales, data, record.groups)
        scale = scale * np.asarray(record.scale_values, F)[codes]
    found = values_of(record, data).reshape(record.groups, -1) * scale[:, None]
    if record.offset:
        mins = -np.asarray(read(record.mins, data, record.groups), F) if record.mins else F(1)
        found = found + np.broadcast_to(half(record.offset, data) * mins, record.groups)[:, None]
    return found.reshape(-1)


def away(x):
    """Round half away from 0."""
    return np.trunc(x) + np.copysign(np.abs(x - np.trunc(x)) >= 0.5, x)


def nearest(x, scale, table):
    """Give the first of the values nearest to each element."""
    errors = np.abs(np.asarray(table, F)[:, None] * scale - x)
    return np.argmin(errors, axis=0)


def ue4m3(x):
    """Give the code of a float of E4M3 without a sign, as ggml finds it."""
    if not x > 0:
        return 0
    x = min(x, F(448))
    fraction, power = math.frexp(x)
    power += 6
    if power <= 0:
        return min(int(x * F(512) + F(0.5)), 7)
    code = (power << 3) + int(fraction * 16 + F(0.5)) - 8
    return 0x7E if code >= 0x78 else code


def codes_of(record, x):
    """Give the codes of a block, and its scale and offset as bytes: C in NumPy."""
    name, amax, offset = record.name, np.abs(x).max(), None
    if name in ("MXFP4", "NVFP4"):
        parts, scales = x.reshape(record.groups, -1), []
        codes = []
        for part in parts:
            amax = np.abs(part).max()
            if name == "MXFP4":
                exponent = math.floor(F(math.log2(amax))) if amax > 0 else 0
                scales.append(exponent - 2 + 127 & 255 if amax > 0 else 0)
            else:
                scales.append(ue4m3(amax / F(6)))
            scale = F(record.scale_values[scales[-1]])
            codes.append(nearest(part, scale, record.element.table))
        return np.concatenate(codes), np.uint8(scales).tobytes(), offset
    if name == "Q1_0":
        total = F(0)
        for element in x:
            total += abs(element)
        return (x >= 0).astype(int), np.float16(total / F(128)).tobytes(), offset
    if name in ("Q4_1", "Q5_1"):
        offset = next(element for element in x if element == x.min())
        extent = x.max() - offset if x.max() > offset else F(0)
        scale, more = extent / F(15 if name == "Q4_1" else 31), F(0.5)
    elif name in ("Q4_0", "Q5_0"):
        levels = 8 if name == "Q4_0" else 16
        scale, more = (x[np.abs(x).argmax()] if amax else F(0)) / F(-levels), F(levels + 0.5)
    else:
        scale = amax / F(127) if name == "Q8_0" else amax
    inverse = F(1) / scale if scale else F(0)
    stored = np.float16(scale).tobytes()
    if np.isinf(inverse):
        codes = np.full(x.size, name.startswith("TQ"), int)
    elif offset is not None or name in ("Q4_0", "Q5_0"):
        part = x if offset is None else x - offset
        codes = np.minimum(np.trunc(part * inverse + more).astype(int), 2 ** int(name[1]) - 1)
    else:
        codes = away(x * inverse).astype(int) + (name != "Q8_0")
    return codes, stored, None if offset is None else np.float16(offset).tobytes()


def encoded(record, x):
    """Encode one block."""
    codes, scale, offset = codes_of(record, x)
    out = np.zeros(record.size, np.uint8)
    for run in record.codes:
        for unit in range(run.units):
            for i in range(run.unit):
                first = run.first + unit * run.fields + i
                fields = [int(codes[first + part * run.unit]) for part in range(run.parts)]
                at = run.start + unit * run.stride + i
                if run.base == 3:
                    digits = sum(3 ** (4 - part) * field for part, field in enumerate(fields))
                    out[at] = -(-digits * 256 // 243)
                    continue
                for part, field in enumerate(fields):
                    low = (field >> run.left) & ((1 << run.bits) - 1)
                    out[at] |= low << (run.right + part * run.bits)
    start = (record.base or record.scales)[0].start
    out[start : start + len(scale)] = np.frombuffer(scale, np.uint8)
    if offset is not None:
        start = record.offset[0].start
        out[start : start + 2] = np.frombuffer(offset, np.uint8)
    return out


def by_blocks(function, record, array, size):
    with np.errstate(all="ignore"):
        found = [function(record, block) for block in array.reshape(-1, size)]
    return np.concatenate(found).reshape(len(array), -1)


def arrays(rows=2, columns=512):
    """Name arrays in which a step can go wrong."""
    random = np.random.default_rng(3)
    shape = rows, columns
    normal = random.standard_normal(shape).astype(F)
    yield "normal", normal
    yield "heavy tails", np.clip(random.standard_t(1.5, shape), -6e4, 6e4).astype(F)
    yield "bfloat16", normal.astype(ml_dtypes.bfloat16).astype(F)
    yield "constant", np.full(shape, -0.37, F)
    yield "zero", np.zeros(shape, F)
    yield "-0", -np.zeros(shape, F)
    yield "both zeros", random.choice([0.0, -0.0], shape).astype(F)
    yield "not negative", np.maximum(normal, random.choice([0.0, -0.0], shape)).astype(F)
    yield "not positive", np.minimum(normal, random.choice([0.0, -0.0], shape)).astype(F)
    yield "one sign", -1 - abs(normal)
    yield "two of one size", random.choice([-0.75, 0.75, 0.1], shape).astype(F)
    outlier = np.zeros(shape, F)
    outlier[:, ::77] = -3
    yield "outliers", outlier
    for size in (1e-7, 1e-20, 1e-30, 1e-37, 1e-38, 1e-40, 1e-44, 3e3):
        yield f"times {size}", (normal * size).astype(F)
    for block in (16, 32, 64, 128, 256):  # what is halfway between codes
        for top in (1, 2, 7, 8, 12, 15, 16, 31, 127):
            ties = random.integers(-2 * top, 2 * top + 1, shape).astype(F) / 2
            ties[:, ::block] = -top if block % 3 else top
            yield f"ties of {top} in {block}", ties
    power = (2.0 ** random.integers(-149, 16, shape)).astype(F)
    yield "powers of two", power
    below = np.maximum(power.view(np.int32) - random.integers(0, 60, shape, np.int32), 0)
    yield "below powers of two", below.view(F)
    each = np.repeat(below.view(F)[:, ::32], 32, axis=1) * random.choice([1, 0.5, -0.25], shape)
    yield "blocks below powers of two", each.astype(F)
    steps = np.ldexp(random.integers(8 * 6, 16 * 6 + 1, (rows, columns // 16)), -9)
    steps = steps * 2.0 ** random.integers(-5, 16, steps.shape) / 8
    near = np.nextafter(steps.astype(F), random.choice([0, 1e9], steps.shape).astype(F))
    steps = np.minimum(np.where(random.random(steps.shape) < 0.5, steps, near), 65000)
    yield "between scales", (np.repeat(steps, 16, axis=1) * np.sign(normal)).astype(F)
