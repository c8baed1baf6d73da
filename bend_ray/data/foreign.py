"""Arrays of other libraries as numpy's: tensors of any kind, subclasses, tables' columns, sparse matrices."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bend_ray.errors import DataError

NARROW = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Types of torch's that numpy does not have; float32 holds them exactly."""


def is_array(value: Any) -> bool:
    """Whether `as_array` takes it."""
    if isinstance(value, Tensor | np.ndarray):
        return True
    return hasattr(value, "__len__") and (hasattr(value, "__array__") or hasattr(value, "toarray"))


def as_array(value: Any, where: str) -> np.ndarray:
    """A plain numpy array of what `is_array` says is one, categories as their names. Raises DataError, which begins
    with ``where``, for types of numbers that numpy does not have and values that are masked."""
    try:
        if isinstance(value, Tensor):
            return _tensor(value)
        if hasattr(value, "toarray"):  # SciPy's sparse matrices
            return np.asarray(value.toarray())
        if isinstance(value, np.ma.MaskedArray):
            if np.ma.is_masked(value):
                raise ValueError("it has masked values; fill them, or leave these rows out")
            value = value.data
        array = np.asarray(value)
        if array.dtype.kind == "T":  # numpy's strings of any length
            return array.astype(object)
        if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.name in ("bfloat16", "void16"):
            if array.dtype.name == "bfloat16":  # ml_dtypes'
                return array.astype(np.float32)
            raise ValueError("its type is |V2, as numpy saves bfloat16; save it as float32")
        return array
    except Exception as error:
        raise DataError(f"{where}: a {type(value).__name__} cannot be taken as numbers ({error})") from None


def _tensor(tensor: Tensor) -> np.ndarray:
    plain = tensor.detach().cpu()
    plain = plain.to_dense() if plain.layout != torch.strided else plain.as_subclass(Tensor)
    if plain.is_quantized:
        plain = plain.dequantize()
    if plain.dtype in NARROW:
        plain = plain.float()
    return plain.resolve_conj().resolve_neg().numpy()
