"""One table a family of checkpoints, used in both directions, strictly.

A table says of each tensor of a checkpoint which part of which of our parameters it is, and how its
axes are ordered there. Tensors are read one at a time: no direction holds more than a component and
one tensor.
"""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from imprint_jax.errors import InputError
from imprint_jax.weights.tensors import StoredTensor, arrays_hash

log = logging.getLogger(__name__)

# How PyTorch orders the axes of a kernel, as a permutation of ours.
SAME = ()
LINEAR = (1, 0)  # (in out) -> (out in)
CONV = (3, 2, 0, 1)  # (h w in out) -> (out in h w)


class Piece(NamedTuple):
    """A tensor of a checkpoint, and the part of our parameter that it is.

    Attributes:
        path: Our parameter within its component, joined by "/".
        key: The checkpoint's tensor.
        axes: SAME, LINEAR or CONV.
        where: Index of the part into our array; empty for the whole.
        lead: How many axes of length 1 the tensor has at its start that ours has not.
        order: If not empty, the tensor's input channels in our order: ours[i] = theirs[order[i]].
    """

    path: str
    key: str
    axes: tuple[int, ...] = SAME
    where: tuple = ()
    lead: int = 0
    order: tuple[int, ...] = ()

    def shape(self, param_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape the tensor must have, given our parameter's."""
        part = np.broadcast_to(False, param_shape)[self.where].shape
        return (1,) * self.lead + tuple(part[i] for i in self.axes or range(len(part)))

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor with our axes."""
        tensor = tensor.reshape(tensor.shape[self.lead :])
        tensor = tensor.transpose(np.argsort(self.axes)) if self.axes else tensor
        return tensor[..., self.order, :] if self.order else tensor

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The part of our array, contiguous, with the checkpoint's axes."""
        array = array[self.where]
        array = array[..., np.argsort(self.order), :] if self.order else array
        array = array.transpose(self.axes) if self.axes else array
        return np.ascontiguousarray(array.reshape((1,) * self.lead + array.shape))


class Table(NamedTuple):
    """A family's names.

    Attributes:
        pieces: Every parameter's, those of one parameter side by side.
        ignored: A regular expression for whole keys of tensors that are not part of the component.
    """

    pieces: list[Piece]
    ignored: str = "(?!)"  # nothing


def axes_of(path: str, ndim: int) -> tuple[int, ...]:
    """The usual order of axes: kernels are transposed, all else is not."""
    if not path.endswith("/kernel"):
        return SAME
    return LINEAR if ndim == 2 else CONV


def own_table(abstract: dict) -> Table:
    """Our own files: paths joined by dots, arrays as they are."""
    paths = traverse_util.flatten_dict(abstract, sep="/")
    return Table([Piece(path, path.replace("/", ".")) for path in paths])


def check(table: Table, tensors: Mapping[str, StoredTensor], abstract: dict, name: str) -> None:
    """Compares a checkpoint with a table; reads no values.

    Args:
        table: The family's.
        tensors: The checkpoint.
        abstract: Nested dict of the shapes our parameters must have.
        name: What to call the checkpoint in an error.

    Raises:
        InputError: Lists every tensor that is missing, unknown, named twice, of the wrong shape or
            of another dtype than the rest of its parameter.
    """
    shapes = {p: x.shape for p, x in traverse_util.flatten_dict(abstract, sep="/").items()}
    keys = Counter(piece.key for piece in table.pieces)
    ignored = re.compile(table.ignored)
    wrong = [f"named twice: {key}" for key, count in keys.items() if count > 1]
    wrong += [f"in no tensor: {path}" for path in shapes.keys() - {p.path for p in table.pieces}]
    wrong += [f"missing: {key}" for key in keys if key not in tensors]
    wrong += [f"unknown: {k}" for k in tensors if k not in keys and not ignored.fullmatch(k)]
    dtypes: dict[str, np.dtype] = {}
    for piece in table.pieces:
        if piece.key not in tensors:
            continue
        tensor, wanted = tensors[piece.key], piece.shape(shapes[piece.path])
        if tensor.shape != wanted:
            wrong.append(f"shape: {piece.key} is {tensor.shape}, should be {wanted}")
        if dtypes.setdefault(piece.path, tensor.dtype) != tensor.dtype:
            wrong.append(f"dtype: {piece.key} is {tensor.dtype}, its like {dtypes[piece.path]}")
    if wrong:
        raise InputError(f"{name} does not fit. {'; '.join(sorted(wrong))}.")


def read(
    table: Table,
    tensors: Mapping[str, StoredTensor],
    abstract: dict,
    name: str,
    dtype: np.dtype | None = None,
) -> dict:
    """Our parameters of a checkpoint.

    Args:
        table, tensors, abstract, name: As in `check`.
        dtype: Of the result; None keeps the checkpoint's.

    Returns:
        Nested dict of contiguous arrays.

    Raises:
        InputError: As `check`.
    """
    arrays = parameters(table, tensors, abstract, name, dtype)
    return traverse_util.unflatten_dict(dict(arrays), sep="/")


def parameters(
    table: Table,
    tensors: Mapping[str, StoredTensor],
    abstract: dict,
    name: str,
    dtype: np.dtype | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """As `read`, one parameter at a time: its path and its array, in the order of the table."""
    check(table, tensors, abstract, name)
    shapes = {p: x.shape for p, x in traverse_util.flatten_dict(abstract, sep="/").items()}
    zero = []
    for path, group in itertools.groupby(table.pieces, lambda piece: piece.path):
        pieces = list(group)
        # Before a tensor is read: the other order leaves holes in memory, twice the model's size.
        array = np.empty(shapes[path], dtype or tensors[pieces[0].key].dtype)
        for piece in pieces:
            with np.errstate(over="ignore"):  # what does not fit the dtype is refused below
                array[piece.where] = piece.to_ours(tensors[piece.key].read())
            _check_values(array[piece.where], piece, name)
            if path.endswith("/kernel") and not array[piece.where].any():
                zero.append(piece.key)
        yield path, array
    if zero:
        listed = f"{', '.join(zero[:3])}{', ...' if len(zero) > 3 else ''}"
        log.warning("%s has %d kernels that are zero everywhere: %s", name, len(zero), listed)


def _check_values(array: np.ndarray, piece: Piece, name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        raise InputError(
            f"{name} is damaged: {piece.key} holds {int((~finite).sum())} values that are no finite"
            f" {array.dtype}."
        )
    # No network is trained to a gain of zero in all channels; a download that broke off is.
    if re.search(r"(^|/)(scale|gamma)$", piece.path) and not array.any(axis=-1).all():
        raise InputError(
            f"{name} is damaged: {piece.key} is zero everywhere, as after a download that broke"
            " off; get the file again."
        )


def digest(table: Table, tensors: Mapping[str, StoredTensor], abstract: dict, name: str) -> str:
    """SHA-256 of the weights as our parameters, hexadecimal: converting them does not change it."""
    table = table._replace(pieces=sorted(table.pieces, key=lambda piece: piece.path))
    return arrays_hash(parameters(table, tensors, abstract, name))


def write(table: Table, params: dict) -> dict[str, np.ndarray]:
    """The checkpoint's tensors of our parameters, which are emptied on the way to save memory."""
    flat = traverse_util.flatten_dict(params, sep="/")
    params.clear()
    tensors = {}
    for i, piece in enumerate(table.pieces):
        tensors[piece.key] = piece.to_torch(flat[piece.path])
        last = i + 1 == len(table.pieces) or table.pieces[i + 1].path != piece.path
        if last:
            del flat[piece.path]
    return tensors
