"""Images as nested lists in JSON and as .npy: numbers of any kind and order, and all that is refused, at no cost."""

import json
import pickle
from typing import Any

import numpy as np
import pytest

from bend_ray.serving import requests
from serving_bodies import COLOURS, FLAT, GREYS, ONE, WHOLE, as_json, at_most_mib, peak_mib, refused, same
from serving_helpers import GREY, ROWS, npy, npy_of

# --- JSON


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (GREYS, GREYS),
        (GREYS[:, 0], GREYS),
        (GREYS.transpose(0, 2, 3, 1), GREYS),
        (COLOURS, COLOURS),
        (COLOURS.transpose(0, 2, 3, 1), COLOURS),
        (ONE, GREYS[:1]),
        (GREYS[0], GREYS[:1]),
        (COLOURS[0], COLOURS[:1]),
        (COLOURS[0].transpose(1, 2, 0), COLOURS[:1]),
    ],
    ids=lambda array: "x".join(map(str, array.shape)),
)
@pytest.mark.parametrize("scale", [1, 255])
def test_arrays_with_their_axes_in_any_usual_order(array: np.ndarray, wanted: np.ndarray, scale: int) -> None:
    numbers = array if scale == 1 else array / 255
    same("json", as_json(numbers.tolist()), wanted)
    same("npy", npy(numbers), wanted)


def test_json_says_more_than_images() -> None:
    body = as_json(GREYS.tolist(), strategy="sbend", members=True)
    assert requests.read("json", body, GREY, ROWS)[1] == {"strategy": "sbend", "members": True}
    same("json", b"\xef\xbb\xbf \n" + body, GREYS)
    same("json", body.decode().encode("utf-16"), GREYS)


def image_with(value: Any) -> bytes:
    return as_json([[[value, *[0] * 7]] + [[0] * 8] * 7])


def text(images: str) -> bytes:
    return b'{"images": ' + images.encode() + b"}"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "is empty"),
        (b"  ", "is no JSON"),
        (b"\xff\xfe\xfd", "is no JSON"),
        (b"[1, 2]", "no object"),
        (b"null", "no object"),
        (b'{"pixels": [], "a": 1}', "has no images; its keys are 'pixels', 'a'"),
        (as_json(FLAT.tolist(), sort="yes"), "unknown key 'sort'"),
        (text("null"), "must be nested lists"),
        (text('"aGk="'), "must be nested lists"),
        (text("7"), "must be nested lists"),
        (text("{}"), "must be nested lists"),
        (text("[]"), "no image"),
        (text("[[[]]]"), "no image"),
        (text("[[[1, 2], [3]]]"), "no array"),
        (text("[[[1, 2], 3]]"), "no array"),
        (text('[["0"]]'), "no numbers"),
        (text("[[true, false]]"), "no numbers"),
        (text("[[null]]"), "no numbers"),
        (text('[[{"a": 1}]]'), "no numbers"),
        (text("[" * 100_000), "is no JSON"),
        (text("[" * 100_000 + "]" * 100_000), "is no JSON"),
        (text("[" * 70 + "]" * 70), "no array"),
        (text("[[1e999]]"), "finite"),
        (text("[[NaN]]"), "finite"),
        (text("[[-Infinity]]"), "finite"),
        (text(f"[[{2**64}]]"), "no numbers"),
        (text(f"[[{10**400}, 0.5]]"), "."),
        (text(f"[[{'9' * 5000}]]"), "is no JSON"),
        (image_with(-1), "pixels from -1"),
        (image_with(256), "to 256"),
        (image_with(2**63), "images: "),
        (image_with(1.5), "pixels from 0"),
        (image_with(-0.1), "pixels from -0.1"),
        (as_json([[0] * 9] * 9), r"has shape \(9, 9\); expected \(N, 1, 8, 8\)"),
        (as_json(COLOURS.tolist()), "has shape"),
        (as_json([[[[[0] * 8] * 8]]]), "has shape"),
        (as_json(GREYS.tolist())[:-9], "is no JSON"),
        (as_json(GREYS.tolist()) + b"{}", "is no JSON"),
    ],
    ids=str,
)
def test_json_that_is_refused(body: bytes, sentence: str) -> None:
    refused("json", body, sentence)


def test_a_bool_among_numbers_is_refused() -> None:
    refused("json", image_with(True))


def test_long_strings_among_short_ones_take_no_memory() -> None:
    body = as_json(["a" * 2000] + [""] * 10_000)  # 32 kB
    assert peak_mib(lambda: refused("json", body, "no number")) < 20


def test_strings_that_memory_cannot_hold_are_refused() -> None:
    with at_most_mib(512):
        refused("json", as_json(["a" * 20_000] + [""] * 20_000))  # 100 kB, which numpy would make 1.6 GB


def test_errors_do_not_repeat_the_body() -> None:
    refused("json", json.dumps(dict.fromkeys(map(str, range(10_000)), 0)).encode(), "has no images")


# --- .npy


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", ">i8", "<u8", "f2", "<f4", ">f4", "<f8"])
def test_npy_of_any_numbers_and_order(dtype: str, fortran: bool, version: tuple[int, int]) -> None:
    array = (COLOURS / 255 if "f" in dtype else COLOURS).astype(dtype)
    same("npy", npy(np.asfortranarray(array) if fortran else array, version), COLOURS)


def header(descr: Any, shape: str) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (WHOLE[:-1], "does not have the 191 bytes"),
        (WHOLE + b"\0", "does not have the 193 bytes"),
        (WHOLE[:40], "no .npy"),
        (WHOLE[:8], "no .npy"),
        (WHOLE[:3], "no .npy"),
        (b"not numpy", "no .npy"),
        (pickle.dumps(GREYS), "no .npy"),
        (npy(GREYS, (3, 0)), "no .npy"),
        (npy_of(header("|u1", "(1099511627776, 8, 8)")), "does not have the 0 bytes"),
        (npy_of(header("<f8", "(8, 8, 2147483647, 2147483647, 2147483647)"), bytes(64)), "a .npy of"),
        (npy_of(header("|O", "(8,)"), bytes(64)), "a .npy of"),
        (npy_of(header([("a", "|O")], "(8,)"), bytes(64)), "a .npy of"),
        (npy_of("{'descr': '|u1'}\n", bytes(64)), "no .npy"),
        (npy_of("{'descr': '|u1', 'fortran_order': 2, 'shape': (8, 8), }\n", bytes(64)), "no .npy"),
        (npy_of("__import__('os').abort()\n", bytes(64)), "no .npy"),
        (npy_of("(" * 5000, bytes(64)), "no .npy"),
        (npy_of(header("|b1", "(8, 8)"), bytes(64)), "no numbers"),
        (npy_of(header("|S1", "(8, 8)"), bytes(64)), "no numbers"),
        (npy_of(header("<c8", "(8, 8)"), bytes(512)), "no numbers"),
        (npy_of(header("<M8[s]", "(8, 8)"), bytes(512)), "no numbers"),
        (npy_of(header([("a", "|u1")], "(8, 8)"), bytes(64)), "no numbers"),
        (npy_of(header("|u1", "(0, 1, 8, 8)")), "no image"),
        (npy_of(header("|u1", "()"), b"\1"), "shape"),
        (npy(np.full((8, 8), np.nan)), "finite"),
        (npy(np.full((8, 8), np.inf, np.float16)), "finite"),
        (npy(np.full((8, 8), -1, np.int8)), "pixels from -1"),
        (npy(np.full((8, 8), 256, np.int16)), "to 256"),
        (npy(np.full((8, 8), 2.0)), "fractions"),
        (npy_of(header("|u1", "9" * 5000)), "no .npy"),
        (npy_of(header("|u1", "(-8, -8)"), bytes(64)), "."),
        (npy_of(header("|u1", "(-1, -1, 8, 8)"), bytes(64)), "."),
        (npy_of(header("|u1", "(True, True, 8, 8)"), bytes(64)), "."),
        (npy_of(header("|u1", f"({'1, ' * 70}8, 8)"), bytes(64)), "."),
        (npy_of(header("|u1", f"(0, {2**70})")), "."),
        (npy_of(header("|V0", "(1099511627776,)")), "."),
        (npy_of(header("|S0", "(8, 8)")), "."),
        (npy_of(header("(2,)u1", "(8, 4)"), bytes(64)), "."),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_npy_that_is_refused(body: bytes, sentence: str) -> None:
    refused("npy", body, sentence)
