"""Schemes of ggml's block types as data, and what cannot be asked of them."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from gguf_corpus import PRESETS, SCHEMES, decoded, rows
from helpers import assert_same_quantized

import quantarray as qa
from quantarray import QuantArrayError, Scheme, _xp
from quantarray.presets import DECODABLE
from quantarray.records import RECORDS
from quantarray.scheme import Block, Packing, Scale

pytestmark = pytest.mark.backend_independent
NUMPY = _xp.load("numpy")


def test_every_type_is_a_scheme():
    assert sorted(SCHEMES) == sorted({*PRESETS, *DECODABLE})
    assert not set(PRESETS) & set(DECODABLE)
    for name in SCHEMES:
        record = RECORDS[name.removeprefix("gguf:").upper()]
        assert qa.scheme(name).record is record
        assert qa.scheme(name).block == Block.group(record.group)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_go_through_json(scheme):
    given = qa.scheme(scheme)
    again = Scheme.from_dict(json.loads(json.dumps(given.to_dict(), allow_nan=False)))
    assert again == given
    assert again.record is given.record
    assert hash(again) == hash(given)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("packing.record", "Q9_0", "record='Q9_0': expected one of Q4_0, .*Q2_0"),
        ("packing.record", "q4_k", "record='q4_k': expected one of"),
        ("packing.record", ["Q4_K"], r"packing\.record: \['Q4_K'\]: expected str"),
        ("packing.record", "Q4_0", "element=.*: blocks of Q4_0 settle all choices"),
        ("packing.record", "Q2_K", "element=.*: blocks of Q2_K settle all choices"),
        ("packing.record", "", "the scale rule 'record' needs the packing of a record"),
        ("packing.word", 32, "packing=.*: blocks of Q4_K settle all choices"),
        ("packing.dense", False, "packing=.*: blocks of Q4_K settle all choices"),
        ("scale.rule", "absmax", "the scale rule 'record' needs the packing of a record"),
        ("scale.divisor", 2.0, "scale=.*: blocks of Q4_K settle all choices"),
        ("element.bits", 5, "element=.*: blocks of Q4_K settle all choices"),
        ("element.signed", True, "zero='offset': expected an element without negative values"),
        ("block.axes", [[-1, 64]], "block=.*: blocks of Q4_K settle all choices"),
        ("block.axes", [[-2, 32]], "block=.*: blocks of Q4_K settle all choices"),
        ("zero", "none", "zero='none': blocks of Q4_K settle all choices"),
        ("rounding.mode", "half_away", "rounding=.*: blocks of Q4_K settle all choices"),
        ("arithmetic", "input", "arithmetic='input': blocks of Q4_K settle all choices"),
    ],
)
def test_hostile_schemes(path, value, message):
    data = copy.deepcopy(qa.scheme("gguf:q4_k").to_dict())
    *outer, last = path.split(".")
    place = data
    for key in outer:
        place = place[key]
    place[last] = value
    with pytest.raises(QuantArrayError, match=message):
        Scheme.from_dict(data)


def test_records_belong_to_their_rule():
    for change in ({"scale": Scale("record")}, {"packing": Packing(record="Q4_0")}):
        with pytest.raises(QuantArrayError, match="the scale rule 'record' needs the packing of"):
            replace(qa.scheme("int4"), **change)


# What is refused.


@pytest.mark.parametrize("scheme", ["gguf:q4_0", "gguf:q4_k", "gguf:mxfp4"])
def test_what_blocks_settle_cannot_be_given(scheme):
    x, name = rows(), qa.scheme(scheme).packing.record
    group = qa.scheme(scheme).record.group
    assert qa.scheme(scheme, group_size=group) == qa.scheme(scheme)
    settled = f"blocks of {name} settle all choices: expected"
    for call in (
        lambda: qa.scheme(scheme, group_size=64),
        lambda: qa.scheme(scheme, channel_axis=0),
        lambda: qa.scheme(scheme, flat=group),
        lambda: qa.scheme(scheme, arithmetic="input"),
        lambda: qa.scheme(scheme, packing=Packing(record=name, order="msb")),
        lambda: qa.quantize(x, scheme, group_size=64),
        lambda: qa.quantize(x, scheme, channel_axis=0),
        lambda: qa.quantize(x, scheme, block=(1, 64)),
    ):
        with pytest.raises(QuantArrayError, match=settled):
            call()
    q, found = qa.quantize(x, scheme), "hold the scales that their encoder finds"
    for call in (
        lambda: qa.quantize(x, scheme, scale=1.0),
        lambda: qa.from_codes(q.codes, scheme, scale=q.scale),
    ):
        with pytest.raises(QuantArrayError, match=found):
            call()
    for given in ({"offset": 1.0}, {"zero_point": 1}):
        with pytest.raises(QuantArrayError, match="needs the scale it belongs to"):
            qa.quantize(x, scheme, **given)
    with pytest.raises(QuantArrayError, match="takes no key"):
        qa.quantize(x, scheme, key=3)


def test_nothing_is_repacked():
    x = rows()
    for source, target in (
        ("gguf:q4_0", "int4"),
        ("gguf:q4_0", "gguf:q4_0"),
        ("gguf:q4_k", "uint4"),
        ("int4", "gguf:q4_0"),
        ("mxfp4", "gguf:mxfp4"),
    ):
        options = {} if "gguf" in source else {"group_size": 32}
        q = qa.quantize(x, source, **options)
        with pytest.raises(QuantArrayError, match=f"repack: {source} to {target}: blocks of ggml"):
            q.repack(target)


def test_native_views():
    q = qa.quantize(rows(), "gguf:q4_k")
    with pytest.raises(QuantArrayError, match="scale_data is None: the scales of gguf:q4_k lie in"):
        q.view_native("scale_data")
    view = q.view_native()
    assert (view.dtype.name, view.shape) == ("uint4", q.shape)
    assert (view.astype(np.uint8) == q.codes).all()
    with pytest.raises(QuantArrayError, match=r"view_native: data: .* has no dtype for"):
        qa.quantize(rows(), "gguf:q4_0").view_native()


def test_what_is_not_finite():
    x = rows().copy()
    x[3, 5], x[7, 400] = np.nan, np.inf
    message = r"^quantize: x has 2 NaN or Inf of 6144 elements, the first at \(3, 5\)"
    with pytest.raises(QuantArrayError, match=message):
        qa.quantize(x, "gguf:q4_0")
    with pytest.raises(QuantArrayError, match=message.replace("3, 5", "0, 3, 5")):
        qa.quantize(x.reshape(2, 6, 512), "gguf:q4_0")
    q = qa.quantize(x, "gguf:q4_0", nonfinite="propagate")
    assert np.argwhere(np.isnan(q.scale)).tolist() == [[3, 0], [7, 12]]
    x[3, 5], x[7, 400] = 0, np.abs(rows()[7, 384:416]).max()
    saturated = qa.quantize(x, "gguf:q4_0")
    x[3, 5], x[7, 400] = np.nan, np.inf
    assert_same_quantized(qa.quantize(x, "gguf:q4_0", nonfinite="saturate"), saturated, NUMPY)


@pytest.mark.parametrize("scheme", DECODABLE)
def test_schemes_of_what_needs_importances(scheme):
    record = qa.scheme(scheme).record
    with pytest.raises(QuantArrayError, match=rf"quantize: .*{record.name}"):
        qa.quantize(rows(), scheme)
    assert decoded(record.name).dequantize().shape == rows().shape
