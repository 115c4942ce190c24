"""Layouts from weights: which blocks are kept, and the .safetensors reader against broken and hostile files."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bsgen.errors import ArgumentError, LayoutError
from bsgen.layout import Layout
from bsgen.safetensors import read_header, read_matrix
from bsgen.weights import block_norms, layout_from_weights, read_weights

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


def weights(rows: int = 48, cols: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols))


def brute_force(dense: np.ndarray, b: int, norm: str) -> np.ndarray:
    """The norm of each block, one by one, in float64."""
    order = {"l2": "fro", "max": None}[norm]
    rows, cols = dense.shape
    return np.array(
        [
            [
                np.linalg.norm(block, order) if order else np.abs(block).max()
                for block in (dense[i : i + b, j : j + b].astype(np.float64) for j in range(0, cols, b))
            ]
            for i in range(0, rows, b)
        ]
    )


# Which blocks are kept


@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 6),
    density=st.floats(0, 1),
    norm=st.sampled_from(["l2", "max"]),
    seed=st.integers(0, 1000),
)
def test_the_largest_blocks_are_kept(rows: int, cols: int, density: float, norm: Any, seed: int) -> None:
    dense = weights(8 * rows, 8 * cols, seed)
    layout = layout_from_weights(dense, 8, density, norm)
    norms = brute_force(dense, 8, norm)
    assert layout.shape == (rows, cols)
    assert layout.nnz == round(density * rows * cols)
    kept, dropped = norms[layout.mask], norms[~layout.mask]
    assert not (kept.size and dropped.size) or kept.min() >= dropped.max()


@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("dtype", [*DTYPES.values(), np.int8])
def test_norms(block_size: int, norm: Any, dtype: Any) -> None:
    dense = (10 * weights()).astype(dtype)
    assert np.allclose(block_norms(dense, block_size, norm), brute_force(dense, block_size, norm), rtol=1e-14)


def test_the_two_norms_differ() -> None:
    dense = np.zeros((8, 16))
    dense[0, 0] = 3.0  # larger in one element
    dense[:, 8:] = 1.0  # larger in all
    assert layout_from_weights(dense, 8, 0.5, "l2") == Layout([[0, 1]])
    assert layout_from_weights(dense, 8, 0.5, "max") == Layout([[1, 0]])


def test_ties_go_to_the_first_block() -> None:
    assert layout_from_weights(np.ones((24, 24)), 8, 4 / 9) == Layout([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert layout_from_weights(np.zeros((8, 16)), 8, 0.5, "max") == Layout([[1, 0]])
    values = np.arange(400).reshape(20, 20) % 2
    many = layout_from_weights(np.kron(values, np.ones((8, 8))), 8, 0.75)
    assert many == Layout((values == 1) | (np.arange(400).reshape(20, 20) < 200))
    # Of the layout, not of the array as stored.
    assert layout_from_weights(np.ones((16, 24)), 8, 0.5, transpose=True) == Layout([[1, 1], [1, 0], [0, 0]])


@pytest.mark.parametrize("scale", [1e-170, 1e-300, 1e170, 1e300])
def test_squares_neither_overflow_nor_vanish(scale: float) -> None:
    dense = np.repeat(np.repeat(np.array([[1.0, 3.0, 2.0]]), 8, axis=0), 8, axis=1) * scale
    assert layout_from_weights(dense, 8, 1 / 3) == Layout([[0, 1, 0]])
    assert np.allclose(block_norms(dense, 8) / scale, [[8.0, 24.0, 16.0]])


def test_transpose_is_for_weights_stored_out_in() -> None:
    dense = weights()
    layout = layout_from_weights(dense, 16, 0.4)
    assert layout_from_weights(dense.T, 16, 0.4, transpose=True) == layout
    assert layout_from_weights(dense, 16, 0.4, transpose=True) == layout.transpose()


@pytest.mark.parametrize(
    ("value", "block_size", "words"),
    [
        (np.full((8, 8), np.nan), 8, ("got nan at [0, 0]", "finite")),
        (np.where(np.arange(256).reshape(16, 16) == 16 * 9 + 3, -np.inf, 0), 8, ("-inf at [9, 3]",)),
        (np.zeros((48, 80)), 32, ("[48, 80]", "multiples of the block size 32", "use block size 8 or 16")),
        (np.zeros((48, 81)), 8, ("pad them with zeros",)),
        (np.zeros((0, 8)), 8, ("[0, 8]",)),
        (np.zeros(64), 8, ("[64]", "matrix [C, K]")),
        (np.zeros((8, 8), complex), 8, ("complex128",)),
        (np.zeros((8, 8), "V2"), 8, ("|V2", "float32")),
        ([["a"]], 8, ("<U1",)),
        ([[1], [1, 2]], 8, ("weights: got list that is no plain array",)),
    ],
)
def test_weights_that_are_refused(value: Any, block_size: int, words: tuple[str, ...]) -> None:
    with pytest.raises(LayoutError) as caught:
        layout_from_weights(value, block_size, 0.5)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("block_size", "density", "norm", "words"),
    [
        (7, 0.5, "l2", "block_size: got 7"),
        (8, 1.5, "l2", "density: got 1.5"),
        (8, float("nan"), "l2", "density: got nan"),
        (8, 0.5, "l1", "norm: got 'l1', expected one of 'l2', 'max'"),
    ],
)
def test_arguments_are_checked(block_size: int, density: float, norm: Any, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        layout_from_weights(np.zeros((8, 8)), block_size, density, norm)
    assert words in str(caught.value)


# Files


@pytest.mark.parametrize("name", DTYPES)
def test_reads_what_the_reference_implementation_writes(tmp_path: Path, name: str) -> None:
    arrays = {key: weights(8, 16, seed).astype(DTYPES[name]) for seed, key in enumerate(["b", "a", "c"])}
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert {entry.dtype for entry in read_header(tmp_path / "m.safetensors").values()} == {name}
    for key, array in arrays.items():
        read = read_weights(tmp_path / "m.safetensors", key)
        assert read.dtype == array.dtype
        assert np.array_equal(read, array)


def test_the_only_matrix_needs_no_name(tmp_path: Path) -> None:
    dense = weights()
    save_file({"bias": dense[0], "weight": dense, "ids": np.zeros((2, 2), int)}, tmp_path / "m.safetensors")
    assert np.array_equal(read_weights(tmp_path / "m.safetensors"), dense)


def test_npy_weights(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", weights())
    assert np.array_equal(read_weights(str(tmp_path / "w.npy")), weights())
    with pytest.raises(LayoutError, match="leave the name out"):
        read_weights(tmp_path / "w.npy", "weight")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layer.0.weigth", ("no tensor 'layer.0.weigth'", "did you mean 'layer.0.weight'?", "'layer.1.weight'")),
        ("zzz", ("no tensor 'zzz'; it holds the 2-D tensors 'layer.0.weight'",)),
        (None, ("no tensor was named", "'layer.0.weight', 'layer.1.weight'", "--tensor")),
        ("bias", ("'bias' is F64 [80]", "expected 2-D")),
        ("ids", ("'ids' is I64 [2, 2]", "F64, F32, F16, BF16")),
    ],
)
def test_tensors_that_cannot_be_chosen(tmp_path: Path, name: str | None, words: tuple[str, ...]) -> None:
    dense = weights()
    arrays = {"layer.0.weight": dense, "layer.1.weight": dense, "bias": dense[0], "ids": np.zeros((2, 2), np.int64)}
    save_file(arrays, tmp_path / "m.safetensors")
    with pytest.raises(LayoutError) as caught:
        read_weights(tmp_path / "m.safetensors", name)
    for word in words:
        assert word in str(caught.value)


def test_many_names_are_counted_and_odd_ones_stay_on_one_line(tmp_path: Path) -> None:
    save_file({f"w{i:02}\n": np.zeros((1, 1)) for i in range(40)}, tmp_path / "m.safetensors")
    with pytest.raises(LayoutError, match="and 28 more") as caught:
        read_weights(tmp_path / "m.safetensors", "q")
    assert "\n" not in str(caught.value)


def test_a_file_without_matrices_says_so(tmp_path: Path) -> None:
    save_file({"bias": np.zeros(3)}, tmp_path / "m.safetensors")
    with pytest.raises(LayoutError, match="no 2-D tensors of F64, F32, F16, BF16"):
        read_weights(tmp_path / "m.safetensors")


def safetensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes: Any) -> dict[str, Any]:
    """The header of one F32 [2, 2] tensor with some fields changed, or removed by None."""
    facts = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    return {"w": {key: value for key, value in facts.items() if value is not None}}


BROKEN = {
    "empty": (b"", "truncated: 8 bytes expected, 0 left"),
    "short": (b"\x00\x00", "truncated"),
    "header cut": (safetensors(tensor())[:30], "header should have"),
    "header huge": (safetensors(tensor(), length=2**64 - 1), "header should have 18446744073709551615 bytes"),
    "not JSON": (safetensors(b"{nothing"), "cannot be read as a .safetensors file"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "utf-8"),
    "nested": (safetensors(b"[" * 100000), "cannot be read as a .safetensors file"),
    "a list": (safetensors([]), "not a table of tensors"),
    "names twice": (safetensors(b'{"w": {}, "w": {}}'), "'w' twice"),
    "no facts": (safetensors({"w": 3}), "not described by a table"),
    "no dtype": (safetensors(tensor(dtype=None)), "has no 'dtype'"),
    "no shape": (safetensors(tensor(shape=None)), "has no 'shape'"),
    "no offsets": (safetensors(tensor(data_offsets=None)), "has no 'data_offsets'"),
    "odd dtype": (safetensors(tensor(dtype=[1])), "dtype of tensor 'w'"),
    "negative shape": (safetensors(tensor(shape=[-2, -2])), "shape of tensor 'w'"),
    "fractional shape": (safetensors(tensor(shape=[2.0, 2])), "shape of tensor 'w'"),
    "boolean shape": (safetensors(tensor(shape=[True, 4])), "shape of tensor 'w'"),
    "number for shape": (safetensors(tensor(shape=4)), "shape of tensor 'w'"),
    "one offset": (safetensors(tensor(data_offsets=[0])), "not two positions"),
    "negative offset": (safetensors(tensor(data_offsets=[-16, 0])), "not two positions"),
    "reversed offsets": (safetensors(tensor(data_offsets=[16, 0])), "ends after the file does, or before it starts"),
    "past the end": (safetensors(tensor(data_offsets=[4, 20])), "ends after the file does"),
    "data cut": (safetensors(tensor())[:-1], "ends after the file does"),
    "wrong size": (safetensors(tensor(shape=[2, 3])), "should have 24 bytes, it has 16"),
    "huge shape": (safetensors(tensor(shape=[2**62, 2**62])), "should have"),
}


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_safetensors(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(LayoutError) as caught:
        read_weights(path, "w")
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_file_that_the_broken_ones_derive_from_is_whole(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors(tensor(), np.arange(4, dtype="<f4").tobytes()))
    assert read_matrix(tmp_path / "m.safetensors", "w").tolist() == [[0, 1], [2, 3]]


@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, position: int, value: int) -> None:
    content = bytearray(safetensors(tensor()))
    content[position % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(content)
    try:
        size = read_matrix(path, "w").size
    except LayoutError:
        size = 4
    assert size == 4


def test_checkpoints_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(pickle.dumps({}))
    np.savez(tmp_path / "w.npz", w=weights())
    for name in ("old.pt", "w.npz"):
        with pytest.raises(LayoutError, match=r"safetensors\.torch\.save_file or numpy\.save"):
            read_weights(tmp_path / name)
    with pytest.raises(LayoutError, match="No such file"):
        read_weights(tmp_path / "none.safetensors")
