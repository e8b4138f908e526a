"""int32 columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_runtime.columns import pack_i32, unpack_i32

INT32 = st.integers(min_value=-(2**31), max_value=2**31 - 1)


@given(st.lists(INT32))
def test_a_column_reads_back_as_written(values):
    assert unpack_i32(pack_i32(values)) == values


def test_a_column_is_little_endian():
    assert pack_i32([1, -2]) == b"\x01\x00\x00\x00\xfe\xff\xff\xff"


def test_any_iterable_is_taken():
    assert unpack_i32(pack_i32(value * value for value in range(3))) == [0, 1, 4]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_a_torn_column_is_refused(length):
    with pytest.raises(ValueError, match=f"this one has {length}"):
        unpack_i32(bytes(length))


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_what_does_not_fit_is_refused(value):
    with pytest.raises(OverflowError):
        pack_i32([value])
