"""The Open Inference Protocol: JSON and bytes say the same, both ways."""

from typing import Any

import numpy as np
import pytest
import torch

from bend_ray.ensemble.aggregate import Prediction
from bend_ray.serving import oip
from oip_requests import IMAGES, asked, in_bytes, tensor
from serving_helpers import COLOUR, GREY, ensemble, pictures

# --- requests


OUTPUTS = oip.offered(distance=False)


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


# --- responses


def predict(images: torch.Tensor) -> Prediction:
    return ensemble().predict(images)


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
