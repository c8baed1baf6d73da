"""The Open Inference Protocol: JSON and bytes say the same, both ways, and what does not fit is refused."""

import json
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.ensemble.aggregate import Prediction
from bend_ray.errors import DataError
from bend_ray.serving import oip
from serving_helpers import COLOUR, GREY, ensemble, pictures

IMAGES = pictures(3)
OUTPUTS = tuple(oip.OUTPUTS)


def tensor(images: np.ndarray = IMAGES, datatype: str = "UINT8", **changes: Any) -> dict[str, Any]:
    facts = {"name": "images", "datatype": datatype, "shape": list(images.shape), "data": images.reshape(-1).tolist()}
    return {key: value for key, value in (facts | changes).items() if value is not ...}


def asked(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors)} | more).encode()


def in_bytes(
    images: np.ndarray = IMAGES, datatype: str = "UINT8", data: bytes | None = None, **changes: Any
) -> tuple[bytes, str]:
    """A body and the length of its JSON; `data` are other bytes than those of ``images``."""
    data = images.astype(oip.TYPES.get(datatype, "u1")).tobytes() if data is None else data
    parameters = changes.pop("parameters", {"binary_data_size": len(data)})
    head = asked(tensor(images, datatype, data=..., parameters=parameters, **changes))
    return head + data, str(len(head))


def refused(body: bytes, sentence: str = ".", length: str | None = None) -> None:
    with pytest.raises(DataError, match=sentence) as error:
        oip.read(body, length, GREY)
    assert len(str(error.value)) < 1000


def predict(images: torch.Tensor) -> Prediction:
    return ensemble().predict(images)


# --- requests


@pytest.mark.parametrize("datatype", oip.TYPES)
def test_json_and_bytes_give_the_same_images(datatype: str) -> None:
    levels = IMAGES // 2 if datatype == "INT8" else IMAGES
    images = (levels / 255 if datatype.startswith("FP") else levels).astype(oip.TYPES[datatype])
    for body, length in ((asked(tensor(images, datatype)), None), in_bytes(images, datatype)):
        found = oip.read(body, length, GREY)
        assert torch.equal(found.images, torch.from_numpy(levels))
        assert (found.id, found.strategy, found.outputs) == (None, "abend", dict.fromkeys(OUTPUTS, False))


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 8, 8), (3, 8, 8, 1)])
def test_axes_as_everywhere_else(shape: tuple[int, ...]) -> None:
    images = IMAGES.reshape(shape)
    nested = asked(tensor(images, data=images.tolist()))
    for body, length in ((asked(tensor(images)), None), (nested, None), in_bytes(images)):
        assert torch.equal(oip.read(body, length, GREY).images, torch.from_numpy(IMAGES))


def test_colour_is_not_mixed_up() -> None:
    images = pictures(2, COLOUR)
    for array in (images, images.transpose(0, 2, 3, 1)):
        body, length = in_bytes(np.ascontiguousarray(array))
        assert torch.equal(oip.read(body, length, COLOUR).images, torch.from_numpy(images))


def test_a_header_of_the_whole_length_is_none() -> None:
    body = asked(tensor())
    assert torch.equal(oip.read(body, str(len(body)), GREY).images, oip.read(body, None, GREY).images)


def test_whole_numbers_are_fractions_where_the_datatype_says_so() -> None:
    found = oip.read(asked(tensor(np.ones((1, 1, 8, 8), int), "FP32")), None, GREY).images
    assert set(found.unique().tolist()) == {255}


def test_what_else_a_request_says() -> None:
    more = {"id": "seven", "parameters": {"strategy": "sbend", "binary_data_output": True, "other": 1}}
    outputs = [{"name": "vote"}, {"name": "label", "parameters": {"binary_data": False}}]
    found = oip.read(asked(tensor(), outputs=outputs, **more), None, GREY)
    assert (found.id, found.strategy) == ("seven", "sbend")
    assert list(found.outputs.items()) == [("vote", True), ("label", False)]


# --- refusals

ONE = pictures(1)
SIDES = "whole numbers"


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


# --- responses


def written(prediction: Prediction, **more: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    body, headers = oip.write(oip.read(asked(tensor(), **more), None, GREY), prediction, "bend", "1")
    return *oip.tensors(body, headers.get(oip.LENGTH)), headers


def test_json_and_bytes_are_the_same_bits_of_the_prediction() -> None:
    prediction = predict(torch.from_numpy(IMAGES))
    _, as_json, headers = written(prediction)
    _, as_bytes, more_headers = written(prediction, parameters={"binary_data_output": True})
    assert headers == {"Content-Type": "application/json"}
    assert more_headers["Content-Type"] == "application/octet-stream" and int(more_headers[oip.LENGTH]) > 0
    assert tuple(as_json) == tuple(as_bytes) == OUTPUTS
    for name in OUTPUTS:
        wanted = vars(prediction)[f"{name}_{'BK' if oip.OUTPUTS[name][1] else 'B'}"].numpy()
        for found in (as_json[name], as_bytes[name]):
            assert found.dtype == wanted.dtype and found.shape == wanted.shape
            assert found.tobytes() == wanted.tobytes()


def test_outputs_are_those_asked_for_in_their_order_each_in_its_own_way() -> None:
    prediction = predict(torch.from_numpy(IMAGES))
    outputs = [
        {"name": "vote", "parameters": {"binary_data": True}},
        {"name": "members"},
        {"name": "label", "parameters": {"binary_data": True}},
    ]
    said, found, _ = written(prediction, outputs=outputs)
    assert tuple(found) == ("vote", "members", "label")
    assert ["data" in output for output in said["outputs"]] == [False, True, False]
    assert [output.get("parameters") for output in said["outputs"]] == [
        {"binary_data_size": 96},
        None,
        {"binary_data_size": 24},
    ]
    assert np.array_equal(found["label"], prediction.label_B) and np.array_equal(found["vote"], prediction.vote_BK)
    assert found["members"].tolist() == [5, 5, 5]
    assert tuple(written(prediction, outputs=[])[1]) == OUTPUTS


@pytest.mark.parametrize("id_", [None, "", "seven", "Ä\ud800\0"])
def test_the_id_comes_back(id_: str | None) -> None:
    said, _, _ = written(predict(torch.from_numpy(IMAGES)), **({} if id_ is None else {"id": id_}))
    assert said.get("id") == id_ and ("id" in said) == (id_ is not None)


def test_a_response_says_what_made_it() -> None:
    prediction = ensemble().predict(torch.from_numpy(IMAGES), "sbend")
    said, found, _ = written(prediction)
    assert (said["model_name"], said["model_version"], said["parameters"]) == ("bend", "1", {"strategy": "sbend"})
    assert np.array_equal(found["prob"], found["vote"])


def test_metadata_is_of_what_is_really_taken_and_given() -> None:
    said, found, _ = written(predict(torch.from_numpy(IMAGES)))
    facts = oip.metadata("bend", "1", GREY, 4)
    assert (facts["name"], facts["versions"], facts["platform"]) == ("bend", ["1"], "bend_ray")
    assert facts["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, 8, 8]}]
    assert [output["name"] for output in facts["outputs"]] == list(found)
    for output, given_ in zip(facts["outputs"], said["outputs"], strict=True):
        assert output["datatype"] == given_["datatype"] and output["shape"][1:] == given_["shape"][1:]
        assert output["shape"][0] == -1 and given_["shape"][0] == len(IMAGES)
