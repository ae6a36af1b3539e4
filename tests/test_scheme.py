"""Schemes are data: they go through JSON, compare, hash, and refuse what is none."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quantarray as qa
from quantarray import QuantArrayError, Scheme
from quantarray.formats import FLOAT16, FORMATS, Codebook, Integer
from quantarray.scheme import Block, Packing, Rounding, Scale

pytestmark = pytest.mark.backend_independent

OVERRIDES = [
    {},
    {"channel_axis": 0},
    {"channel_axis": -2},
    {"group_size": 32},
    {"group_size": 2, "group_axis": 0},
    {"block": (4, -1)},
    {"block": Block(((-1, 3),), others=-1)},
    {"flat": 64},
    {"rounding": "stochastic"},
    {"rounding": Rounding("half_away", "reciprocal", "before")},
    {"packing": Packing("msb")},
    {"scale": Scale("absmax", 15.5, FORMATS["e8m0fnu"], zero_block=0.5)},
    {"element": Codebook("signs", (-1.0, 1.0)), "name": "mine"},
    {"zero": "point", "element": Integer(5)},
    {
        "zero": "offset",
        "element": Integer(4, signed=False),
        "scale": Scale("range", 15.0, FLOAT16),
    },
]


def through_json(scheme):
    return Scheme.from_dict(json.loads(json.dumps(scheme.to_dict(), allow_nan=False)))


@pytest.mark.parametrize("name", qa.schemes())
def test_presets_go_through_json(name):
    scheme = qa.scheme(name)
    again = through_json(scheme)
    assert scheme.name == name
    assert again == scheme
    assert hash(again) == hash(scheme)
    assert again.to_dict() == scheme.to_dict()
    assert repr(again) == repr(scheme)


@pytest.mark.parametrize("overrides", OVERRIDES, ids=str)
def test_overrides_go_through_json_and_make_another_scheme(overrides):
    base = qa.scheme("int4")
    scheme = qa.scheme(base, **overrides)
    assert through_json(scheme) == scheme
    assert len({base, scheme}) == 1 + bool(overrides)
    assert qa.scheme("int4") == base


def test_native_integers_are_there():
    promised = [f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9)]
    assert set(promised) <= set(qa.schemes())
    assert len(set(qa.schemes())) == len(qa.schemes())


@pytest.mark.parametrize("bits", range(2, 9))
def test_native_integers_are_what_the_design_says(bits):
    signed, unsigned = qa.scheme(f"int{bits}"), qa.scheme(f"uint{bits}")
    assert (signed.element.min, signed.element.max) == (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    assert (signed.scale.rule, signed.scale.divisor, signed.zero) == (
        "absmax",
        signed.element.max,
        "none",
    )
    assert (unsigned.element.min, unsigned.element.max) == (0, 2**bits - 1)
    assert (unsigned.scale.rule, unsigned.scale.divisor) == ("minmax", unsigned.element.max)
    assert unsigned.zero == "point"
    assert signed.block == unsigned.block == Block()


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({}, "int8 (per tensor)"),
        ({"channel_axis": 0}, "int8 (per channel of axis 0)"),
        ({"group_size": 32}, "int8 (blocks of 32 along axis -1)"),
        ({"block": (1, -1)}, "int8 (blocks of 1 x whole along axis -2, -1)"),
        ({"flat": 64}, "int8 (flat 64)"),
        ({"block": ()}, "int8 (per element)"),
    ],
)
def test_schemes_in_words(overrides, text):
    assert str(qa.scheme("int8", **overrides)) == text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"size": 3}, "size is no choice of a scheme"),
        ({"group_size": 0}, "group_size=0: expected"),
        ({"group_size": -32}, "group_size=-32: expected"),
        ({"group_size": True}, "group_size=True: expected an integer"),
        ({"group_size": 1.5}, r"group_size=1\.5: expected an integer"),
        ({"group_size": "8"}, "group_size='8': expected an integer"),
        ({"group_axis": 0}, "group_axis=0 needs a group_size"),
        ({"group_size": 8, "group_axis": "last"}, "group_axis='last': expected an integer"),
        ({"channel_axis": (0, 1)}, r"channel_axis=\(0, 1\): expected an integer"),
        ({"channel_axis": 0, "group_size": 8}, "channel_axis and group_size exclude one another"),
        ({"flat": 8, "block": (1, 8)}, "block and flat exclude one another"),
        ({"flat": 0}, "flat=0: expected"),
        ({"block": 8}, "block=8: expected"),
        ({"block": (0, 8)}, "extent .*axis -2.*0: expected .*-1"),
        ({"block": (1, True)}, "block=True: expected an integer"),
        ({"rounding": "up"}, "'up'.*expected .*half_even"),
        ({"rounding": 3}, "rounding.*3.*expected"),
        ({"element": "int4"}, "element.*'int4'.*expected"),
        ({"scale": 3}, "scale.*3.*expected"),
        ({"zero": "x"}, "zero.*'x'.*expected .*none"),
        ({"packing": "msb"}, "packing.*'msb'.*expected"),
        ({"name": 3}, "name.*3.*expected"),
    ],
    ids=str,
)
def test_overrides_that_make_no_scheme_are_refused(overrides, message):
    with pytest.raises(QuantArrayError, match=message):
        qa.scheme("int4", **overrides)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Packing("x"), "order='x': expected .*'lsb'"),
        (lambda: Rounding("x"), "mode='x': expected .*'half_even'"),
        (lambda: Rounding(quotient=None), "quotient=None: expected .*'divide'"),
        (lambda: Scale("x"), "rule='x': expected .*'absmax'"),
        (lambda: Scale(divisor="a"), "divisor='a': expected"),
        (lambda: Block(others=3), "others=3: expected"),
        (lambda: Block(flat=2.5), r"flat=2\.5: expected"),
        (lambda: Block(flat="a"), "flat='a': expected"),
        (lambda: Block(axes=((-1, True),)), "True.*expected"),
        (lambda: Block(axes=3), "axes=3: expected"),
    ],
)
def test_parts_of_a_scheme_check_themselves(build, message):
    with pytest.raises(QuantArrayError, match=message):
        build()


@pytest.mark.parametrize("name", ["int9", "INT8", "", None, 8, ["int8"], {}, "x" * 10_000])
def test_unknown_schemes_are_refused(name):
    with pytest.raises(
        QuantArrayError, match=r"scheme: .* is not known: expected one of schemes"
    ) as caught:
        qa.scheme(name)
    assert len(str(caught.value)) < 3000


def deep(depth):
    nested = []
    for _ in range(depth):
        nested = [nested]
    return nested


ABSENT = object()
NAN, INF = float("nan"), float("inf")
HOSTILE = [
    ("name", 3, "scheme.name: 3: expected"),
    ("name", ABSENT, "field name: expected exactly the fields name, element"),
    ("size", 1, "field 'size': expected exactly the fields"),
    ("block.size", 1, "scheme.block: field 'size'"),
    ("k" * 10**6, 1, "field 'kkk"),
    ("element", None, "scheme.element: None: expected"),
    ("element", "uint4", "scheme.element: 'uint4': expected"),
    ("element.kind", "double", r"scheme.element.kind: 'double': expected one of integer, float"),
    ("element.kind", ABSENT, "scheme.element.kind: None: expected"),
    ("element.kind", [], r"scheme.element.kind: \[\]: expected"),
    ("element.bits", True, "scheme.element.bits: True: expected int"),
    ("element.bits", 4.0, r"scheme.element.bits: 4\.0: expected int"),
    ("element.bits", 17, "bits=17: expected .*1 to 16"),
    ("element.bits", 10**30, "bits=10+.*: expected .*1 to 16"),
    ("element.narrow", 1, "scheme.element.narrow: 1: expected bool"),
    ("element.narrow", True, "only signed integers"),
    ("scale.divisor", NAN, "divisor=nan: expected a positive finite"),
    ("scale.divisor", INF, "divisor=inf: expected a positive finite"),
    ("scale.divisor", 0, r"divisor=0\.0: expected a positive finite"),
    ("scale.divisor", -15.0, r"divisor=-15\.0: expected a positive"),
    ("scale.divisor", True, "scheme.scale.divisor: True: expected float"),
    ("scale.divisor", "15", "scheme.scale.divisor: '15': expected float"),
    ("scale.divisor", 10**400, "scheme.scale.divisor: 10+.*: expected float"),
    ("scale.zero_block", -1.0, r"zero_block=-1\.0: expected"),
    ("scale.rule", "median", "scheme.scale.rule: 'median': expected .*'absmax'"),
    ("scale.format", {}, "scheme.scale.format.kind: None"),
    ("scale.format", 3, "scheme.scale.format: 3: expected"),
    ("block", [], r"scheme.block: \[\]: expected an object"),
    ("block", deep(100_000), "scheme.block: .*: expected an object"),
    ("block.axes", deep(100_000), "scheme.block.axes.*expected"),
    ("block.axes", "ab", "scheme.block.axes: 'ab': expected a list"),
    ("block.axes", [[-1]], r"scheme.block.axes\[0\]: \[-1\]: expected a list"),
    ("block.axes", [[-1, True]], r"scheme.block.axes\[0\]\[1\]: True: expected int"),
    ("block.axes", [[-1, 0]], "extent .*axis -1.*0: expected"),
    ("block.axes", [[-1, -5]], "extent .*axis -1.*-5: expected"),
    ("block.axes", [[-1, 2], [-1, 3]], r"axes=\(\(-1, 2\), \(-1, 3\)\): expected .*once"),
    ("block.axes", [[-1, 2]] * 100_000, "once|expected"),
    ("block.others", True, "scheme.block.others: True: expected one of 1, -1"),
    ("block.others", 2, "scheme.block.others: 2: expected one of 1, -1"),
    ("block.flat", True, "scheme.block.flat: True: expected"),
    ("block.flat", 0, "flat=0: expected"),
    ("block.flat", 8, "flat=8: expected .*no axes"),
    (
        "scale.format",
        {"kind": "integer", "bits": 8, "signed": True, "narrow": False},
        "scale.*expected",
    ),
    ("scale.format", vars(FORMATS["e8m0fnu"]) | {"kind": "float"}, "scale: a format .*'absmax'"),
    (
        "element",
        vars(FORMATS["e2m1fn"]) | {"kind": "float"},
        "only plain integer elements have zero",
    ),
    (
        "element",
        {"kind": "codebook", "name": "none", "table": [], "bins": None},
        "expected 2 to 256 finite values",
    ),
    ("zero", "somewhere", "scheme.zero: 'somewhere': expected one of 'none', 'point'"),
    ("rounding.mode", None, "scheme.rounding.mode: None: expected one of 'half_even'"),
    ("rounding.quotient", [], r"scheme.rounding.quotient: \[\]: expected one of"),
    ("packing.order", "LSB", "scheme.packing.order: 'LSB': expected one of 'lsb', 'msb'"),
]


@pytest.mark.parametrize(("path", "value", "message"), HOSTILE, ids=[h[2][:60] for h in HOSTILE])
def test_hostile_data_is_refused_with_the_field_in_a_short_message(path, value, message):
    data = copy.deepcopy(qa.scheme("uint4", group_size=32).to_dict())
    *parents, last = path.split(".")
    owner = data
    for parent in parents:
        owner = owner[parent]
    owner[last] = value
    if value is ABSENT:
        del owner[last]
    with pytest.raises(QuantArrayError, match=message) as caught:
        Scheme.from_dict(data)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("data", [None, [], "uint4", 3])
def test_data_that_is_no_object_is_refused(data):
    with pytest.raises(QuantArrayError, match=r"scheme: .*: expected an object with fields"):
        Scheme.from_dict(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = [
    (k, f)
    for k, v in qa.scheme("uint4").to_dict().items()
    for f in (v if isinstance(v, dict) else [None])
]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(PATHS), JSON)
def test_any_json_is_a_scheme_or_refused(path, value):
    data = copy.deepcopy(qa.scheme("uint4", group_size=32).to_dict())
    field, inner = path
    if inner is None:
        data[field] = value
    else:
        data[field][inner] = value
    try:
        scheme = Scheme.from_dict(data)
    except QuantArrayError as refusal:
        assert len(str(refusal)) < 500  # noqa: PT017
    else:
        assert through_json(scheme) == scheme
        assert hash(scheme) == hash(through_json(scheme))
        assert str(scheme)


def test_whole_numbers_are_floats_in_json():
    data = qa.scheme("uint4").to_dict()
    data["scale"]["divisor"] = 15
    assert Scheme.from_dict(data) == qa.scheme("uint4")
    assert isinstance(Scheme.from_dict(data).scale.divisor, float)


def test_schemes_cannot_be_changed():
    with pytest.raises(AttributeError):
        qa.scheme("int8").name = "other"
    with pytest.raises(AttributeError):
        qa.scheme("int8").block.flat = 3
