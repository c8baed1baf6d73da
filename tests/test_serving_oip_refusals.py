"""The Open Inference Protocol: requests that do not fit are refused, each with a sentence."""

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.errors import DataError
from bend_ray.serving import oip
from oip_requests import asked, in_bytes, tensor
from serving_helpers import GREY, pictures

ONE = pictures(1)
SIDES = "whole numbers"


def refused(body: bytes, sentence: str = ".", length: str | None = None) -> None:
    with pytest.raises(DataError, match=sentence) as error:
        oip.read(body, length, GREY)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "is no JSON"),
        (b"[]", "no object"),
        (b"{}", "inputs: must be a list of one"),
        (asked(), "must be a list of one"),
        (asked(tensor(), tensor()), "must be a list of one"),
        (json.dumps({"inputs": tensor()}).encode(), "must be a list of one"),
        (json.dumps({"inputs": [7]}).encode(), r"inputs\[0\]: must be an object"),
        (asked(tensor(name="image")), "'image' is unknown"),
        (asked(tensor(name=...)), "None is unknown"),
        (asked(tensor(name=["images"])), "is unknown"),
        (asked(tensor(datatype="BYTES")), "'BYTES' cannot be read"),
        (asked(tensor(datatype="uint8")), "'uint8' cannot be read"),
        (asked(tensor(datatype=...)), "None cannot be read"),
        (asked(tensor(datatype=["UINT8"])), "cannot be read"),
        (asked(tensor(shape=...)), SIDES),
        (asked(tensor(shape=192)), SIDES),
        (asked(tensor(shape=[3, 1, 8, -8])), SIDES),
        (asked(tensor(shape=[3, 1, -8, -8])), SIDES),
        (asked(tensor(shape=[3, 1, 8, 8.0])), SIDES),
        (asked(tensor(shape=[3, True, 8, 8])), SIDES),
        (asked(tensor(shape=["3", 1, 8, 8])), SIDES),
        (asked(tensor(shape=[3, None, 8, 8])), SIDES),
        (asked(tensor(shape=[2**32, 1, 8, 8])), SIDES),
        (asked(tensor(shape=[2**32 - 1] * 4)), "holds 192 values"),
        (asked(tensor(shape=[2, 1, 8, 8])), "holds 192 values, not 128"),
        (asked(tensor(shape=[1, 3, 8, 8])), "has shape"),
        (asked(tensor(shape=[192])), "has shape"),
        (asked(tensor(shape=[], data=[7])), "shape"),
        (asked(tensor(shape=[0, 1, 8, 8], data=[])), "."),
        (asked(tensor(data=...)), "must be nested lists"),
        (asked(tensor(data="AAAA")), "must be nested lists"),
        (asked(tensor(data=[[1, 2], [3]])), "no array"),
        (asked(tensor(ONE, data=["1"] * 64)), "no numbers"),
        (asked(tensor(ONE, data=[True] * 64)), "no numbers"),
        (asked(tensor(ONE, data=[None] * 64)), "no numbers"),
        (asked(tensor(ONE, data=[0.5] * 64)), "no UINT8"),
        (asked(tensor(ONE, data=[256] * 64)), "no UINT8"),
        (asked(tensor(ONE, "INT16", data=[-1] * 64)), "pixels from -1"),
        (asked(tensor(ONE, "FP32", data=[1.5] * 64)), "fractions from 0 to 1"),
        (asked(tensor(ONE, "FP32", data=[float("nan")] * 64)), "finite"),
        (asked(tensor(ONE, "FP64", data=[float("inf")] * 64)), "finite"),
        (asked(tensor(parameters=None)), r"inputs\[0\]\.parameters: must be an object"),
        (asked(tensor(), parameters=[]), "parameters: must be an object"),
        (asked(tensor(), parameters={"strategy": 1}), "must be strings"),
        (asked(tensor(), id=7), "must be strings"),
        (asked(tensor(), outputs={"name": "label"}), "outputs: must be a list"),
        (asked(tensor(), outputs=["label"]), r"outputs\[0\]: must be an object"),
        (asked(tensor(), outputs=[{"name": "label"}, {"name": "logits"}]), r"outputs\[1\]\.name: 'logits' is unknown"),
        (asked(tensor(), outputs=[{"name": ["label"]}]), "is unknown"),
        (asked(tensor(), outputs=[{"name": "label", "parameters": 1}]), "parameters: must be an object"),
        (asked(tensor()) + b"\0", "is no JSON"),
        (asked(tensor(shape=[1] * 70 + [3, 1, 8, 8])), "."),
        (asked(tensor(datatype="FP32", shape=[0, *[2**32 - 1] * 3], data=[])), "."),
        (asked(tensor(shape=[2**32 - 1] * 500)), "."),
        (asked(tensor(name="x" * 100_000)), "."),
        (asked(tensor(ONE, data=[True] + [2] * 63)), "."),
        (asked(tensor(ONE, "INT8", data=[200] * 64)), "."),
    ],
    ids=lambda value: repr(value)[-60:],
)
def test_json_that_is_refused(body: bytes, sentence: str) -> None:
    refused(body, sentence)


def test_a_shape_of_many_sides_costs_no_time() -> None:
    body, start = asked(tensor(shape=[2**32 - 1] * 30_000)), time.thread_time()
    refused(body, SIDES)
    assert time.thread_time() - start < 0.1


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (in_bytes(parameters={"binary_data_size": 191}), "191 given, 192 bytes are there"),
        (in_bytes(parameters={"binary_data_size": 193}), "193 given, 192 bytes are there"),
        (in_bytes(parameters={"binary_data_size": -1}), "-1 given"),
        (in_bytes(parameters={"binary_data_size": 192.0}), "192.0 given"),
        (in_bytes(parameters={"binary_data_size": "192"}), "'192' given"),
        (in_bytes(ONE, parameters={"binary_data_size": True}), "True given"),
        (in_bytes(parameters={}), "belong to no tensor"),
        (in_bytes(data=b""), "takes 192"),
        (in_bytes(data=bytes(191)), "takes 192"),
        (in_bytes(data=bytes(384)), "takes 192"),
        (in_bytes(datatype="UINT16", data=bytes(192)), "takes 384"),
        (in_bytes(datatype="FP8", data=bytes(192)), "cannot be read"),
        (in_bytes(shape=[2**31, 2**31, 2**31]), "takes 9903520314283042199192993792"),
        (in_bytes(ONE, "FP32", np.full(64, np.nan, np.float32).tobytes()), "finite"),
        (in_bytes(ONE, "INT8", np.full(64, -1, np.int8).tobytes()), "pixels from -1"),
        (in_bytes(np.zeros((0, 1, 8, 8))), SIDES),
        (in_bytes(shape=[1] * 70 + [3, 1, 8, 8]), "."),
        (in_bytes(data=b"", shape=[0, *[2**32 - 1] * 3]), "."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bytes_that_are_refused(request_: tuple[bytes, str], sentence: str) -> None:
    body, length = request_
    refused(body, sentence, length)


@pytest.mark.parametrize("length", ["", " ", "-1", "+9", "9.0", "1e2", "0x9", "²", "٣", "nine", "9" * 30, "9" * 5000])
def test_lengths_that_are_none(length: str) -> None:
    refused(in_bytes()[0], f"^{oip.LENGTH}: .* is not the length of JSON", length)


@pytest.mark.parametrize("off", [-1000, -1, 1, 192])
def test_a_wrong_length_is_refused(off: int) -> None:
    body, length = in_bytes()
    refused(body, "is no JSON|binary_data_size", str(max(0, int(length) + off)))


@pytest.mark.parametrize(
    "length",
    ["0" * 5000, f"{10**13:026}"],
    ids=["zeros", "a number behind zeros"],
)
def test_lengths_behind_zeros_are_refused(length: str) -> None:
    refused(in_bytes()[0], oip.LENGTH, length)


def test_bytes_that_no_tensor_asks_for_are_refused() -> None:
    body = asked(tensor())
    refused(body + b"what is this", ".", str(len(body)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_broken_requests_give_images_or_a_sentence(data: st.DataObject) -> None:
    whole, length = in_bytes(ONE)
    body, told = data.draw(st.sampled_from([(asked(tensor(ONE)), None), (whole, length)]))
    at = data.draw(st.integers(0, len(body)))
    put = data.draw(st.binary(max_size=4) | st.sampled_from([b"[", b"-1", b"null", b"1e9", b'""', b"9" * 30]))
    body = body[:at] + put + body[at + data.draw(st.integers(0, 9)) :]
    if told is not None:
        told = str(max(0, int(told) + data.draw(st.sampled_from([0, 0, len(put), -1, 1]))))
    try:
        found = oip.read(body, told, GREY)
    except DataError as error:
        assert str(error)
    else:
        assert found.images.dtype == torch.uint8 and tuple(found.images.shape[1:]) == (1, 8, 8)
