"""Layouts from every kind of source, what is refused and how, digests, statistics and pictures."""

from __future__ import annotations

import copy
import io
import os
import pickle
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bsgen import picture
from bsgen.errors import ArgumentError, LayoutError
from bsgen.layout import Layout

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
FORMATS = ("csr", "csc", "bsr", "coo", "dia")


def example(rows: int = 6, cols: int = 9, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, cols)) < 0.4


class Tensor:
    """Quacks as a PyTorch tensor does, as far as a layout is concerned."""

    def __init__(self, data: np.ndarray, dtype: str = "torch.bool", device: str = "cpu", layout: str = "torch.strided"):
        self.data, self.dtype, self.device, self.layout = data, dtype, device, layout
        self.attached = True

    def detach(self) -> Tensor:
        result = copy.copy(self)
        result.attached = False
        return result

    def float(self) -> Tensor:
        return Tensor(self.data.astype(np.float32), "torch.float32").detach()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.attached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.data


Tensor.__module__ = "torch"


# Sources


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, np.float16, np.float64, ml_dtypes.bfloat16, ">i4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_number_type_and_order_is_the_same_layout(dtype: Any, order: Any) -> None:
    mask = example()
    layout = Layout.load(np.array(mask.astype(dtype), order=order))
    assert layout == Layout(mask)
    assert layout.digest == Layout(mask).digest
    assert layout.mask.dtype == np.bool_
    assert layout.mask.flags.c_contiguous


def test_lists_views_layouts_and_tensors() -> None:
    mask = example()
    assert Layout(mask.astype(int).tolist()) == Layout(mask)
    assert Layout(np.repeat(mask, 2, axis=1)[::-1, ::2]) == Layout(mask[::-1])
    assert Layout.load(Layout(mask)) == Layout(mask)
    assert Layout.load(Tensor(mask)) == Layout(mask)
    assert Layout.load(Tensor(mask, "torch.bfloat16")) == Layout(mask)


@pytest.mark.parametrize("kind", [*FORMATS, "lil", "dok"])
@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_scipy_objects(kind: str, dtype: Any) -> None:
    mask = example()
    assert Layout.load(scipy.sparse.coo_matrix(mask.astype(dtype)).asformat(kind)) == Layout(mask)
    assert Layout.load(scipy.sparse.coo_array(mask.astype(dtype)).asformat(kind)) == Layout(mask)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("container", [scipy.sparse.coo_matrix, scipy.sparse.coo_array])
@pytest.mark.parametrize("compressed", [True, False])
def test_scipy_files(tmp_path: Path, kind: str, container: Any, compressed: bool) -> None:
    mask = example(8, 12)
    scipy.sparse.save_npz(tmp_path / "layout.npz", container(mask).asformat(kind), compressed=compressed)
    assert Layout.load(tmp_path / "layout.npz") == Layout(mask)


@given(mask=masks, kind=st.sampled_from(FORMATS))
def test_scipy_files_of_any_mask(tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray, kind: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npz"
    scipy.sparse.save_npz(path, scipy.sparse.coo_matrix(mask.astype(np.int8)).asformat(kind))
    assert Layout.load(path) == Layout(mask)


def test_blocks_of_a_bsr_file_are_entries(tmp_path: Path) -> None:
    mask = np.kron(example(3, 4), example(2, 3))
    scipy.sparse.save_npz(tmp_path / "bsr.npz", scipy.sparse.bsr_matrix(mask, blocksize=(2, 3)))
    assert Layout.load(tmp_path / "bsr.npz") == Layout(mask)


def test_scipy_files_need_no_scipy(tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "layout.npz", scipy.sparse.csr_matrix(example()))
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        f"from bsgen.layout import Layout; print(Layout.load({str(tmp_path / 'layout.npz')!r}).digest)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == Layout(example()).digest


def test_coordinates_of_newer_scipy_and_explicit_zeros_and_repeats(tmp_path: Path) -> None:
    def load(data: Any) -> Layout:
        np.savez(tmp_path / "coo.npz", format=b"coo", shape=(2, 3), coords=[[0, 1, 1], [2, 0, 0]], data=data)
        return Layout.load(tmp_path / "coo.npz")

    expected = [[0, 0, 1], [1, 0, 0]]
    assert load([1, 1, 0]) == Layout(expected)
    assert load([True, True, True]) == Layout(expected)
    with pytest.raises(LayoutError, match=r"got 2 at \[1, 0\]"):
        load([1, 1, 1])


def test_diagonals_may_hang_over_the_edge(tmp_path: Path) -> None:
    np.savez(tmp_path / "dia.npz", format=b"dia", shape=(2, 3), offsets=[0, 2], data=np.ones((2, 5), bool))
    assert Layout.load(tmp_path / "dia.npz") == Layout([[1, 0, 1], [0, 1, 0]])


def test_plain_npz_with_one_matrix(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", mask=example(), note=np.arange(3))
    assert Layout.load(str(tmp_path / "one.npz")) == Layout(example())


@given(mask=masks)
def test_save_then_load(tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray) -> None:
    path = tmp_path_factory.getbasetemp() / "round.npy"
    Layout(mask).save(path)
    assert Layout.load(path) == Layout(mask)
    assert np.array_equal(np.load(path), mask)


# Refusals


def refused(source: Any, *words: str) -> None:
    """Loading raises `LayoutError` with one line that has all of `words`."""
    with pytest.raises(LayoutError) as caught:
        Layout.load(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[0, 2]], ("got 2 at [0, 1]", "0 and 1", "layout convert")),
        ([[0.0, 0.5]], ("0.5",)),
        ([[1, -1]], ("-1",)),
        ([[np.nan, 1.0]], ("nan at [0, 0]",)),
        ([[np.inf, 1.0]], ("inf",)),
        ([[1j, 1]], ("complex128",)),
        ([["1", "0"]], ("<U1",)),
        ([[None, 1]], ("object",)),
        ([[1, 0], [1]], ("no plain array",)),
        ([1, 0], ("1 dimensions [2]", "expected 2")),
        (1, ("0 dimensions",)),
        (None, ("0 dimensions",)),
        (b"\x00\x01", ("0 dimensions",)),
        (np.zeros((2, 2, 2)), ("3 dimensions [2, 2, 2]",)),
        (np.zeros((0, 3)), ("[0, 3]", "at least one row")),
        (np.zeros((3, 0)), ("[3, 0]",)),
        (np.zeros((2, 2), "V2"), ("|V2",)),
        (np.lib.stride_tricks.as_strided(np.zeros(1, bool), (2**16, 2**16), (0, 0)), ("at most 2147483647 blocks",)),
        (scipy.sparse.csr_matrix([[0, 3]]), ("got 3 at [0, 1]",)),
        (scipy.sparse.csr_matrix([[0.0, np.nan]]), ("nan at [0, 1]",)),
        (scipy.sparse.coo_array((np.ones(1), (np.array([2]),)), shape=(4,)), ("1 dimensions [4]",)),
        (scipy.sparse.csr_matrix((2**20, 2**20)), ("at most",)),
        (Tensor(example(), device="cuda:0"), ("cuda:0", ".cpu()")),
        (Tensor(example(), layout="torch.sparse_csr"), ("sparse_csr", ".to_dense()")),
    ],
)
def test_values_that_are_no_layout(value: Any, words: tuple[str, ...]) -> None:
    refused(value, *words)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def compressed(**changes: Any) -> bytes:
    """A 2 x 3 csr file with some members changed, or removed by None."""
    members = {"format": b"csr", "shape": (2, 3), "indices": [0, 2], "indptr": [0, 1, 2], "data": [1, 1], **changes}
    return npz(**{key: value for key, value in members.items() if value is not None})


WHOLE = npy(example(30, 30))
FILES = {
    "empty": (b"", ("is empty",)),
    "text": (b"0 1\n1 0\n", ("not a .npy or .npz", "numpy.save")),
    "pickle": (pickle.dumps([[0, 1]]), ("pickled Python objects",)),
    "object array": (npy(np.array([[1, None]], dtype=object)), ("pickled Python objects",)),
    "object member": (npz(mask=np.array([[1, None]], dtype=object)), ("pickled Python objects",)),
    "cut header": (WHOLE[:40], ("truncated or damaged .npy", "numpy.save")),
    "cut magic": (WHOLE[:7], ("truncated or damaged .npy",)),
    "cut data": (WHOLE[:-1], ("truncated or damaged .npy",)),
    "no data": (WHOLE[:128], ("truncated or damaged .npy",)),
    "wild header": (WHOLE.replace(b"(30, 30)", b"(30,-30)"), ("truncated or damaged .npy",)),
    "huge header": (WHOLE.replace(b"(30, 30), }  ", b"(30000, 10**9),}"), ("truncated or damaged .npy",)),
    "weights": (npy([[0.1, 0.2]]), ("0.1 at [0, 0]", "layout convert")),
    "no rows": (npy(np.zeros((0, 4))), ("[0, 4]",)),
    "cut zip": (npz(mask=example())[:-30], ("truncated or damaged .npz",)),
    "foreign zip": (b"PK\x05\x06" + bytes(18), ("holds no arrays",)),
    "two matrices": (npz(a=example(), b=example()), ("a [6, 9], b [6, 9]", "exactly one 2-D array")),
    "no matrix": (npz(a=[1, 0]), ("a [2]",)),
    "unknown format": (compressed(format=b"lil"), ("'lil'", "save_npz")),
    "format of two": (compressed(format=[b"csr", b"csr"]), ("save_npz",)),
    "three dimensions": (compressed(shape=(2, 3, 1)), ("two dimensions",)),
    "scalar shape": (compressed(shape=6), ("save_npz",)),
    "empty shape": (compressed(shape=(0, 3), indptr=[0], indices=[], data=[]), ("save_npz",)),
    "no indptr": (compressed(indptr=None), ("it has no indptr",)),
    "float indices": (compressed(indices=[0.0, 2.0]), ("indices is not a vector of integers",)),
    "index too large": (compressed(indices=[0, 3]), ("an index lies outside",)),
    "index negative": (compressed(indices=[-1, 0]), ("an index lies outside",)),
    "indptr short": (compressed(indptr=[0, 2]), ("indptr does not match",)),
    "indptr late": (compressed(indptr=[1, 1, 2]), ("indptr does not match",)),
    "indptr falls": (compressed(shape=(3, 3), indptr=[0, 2, 1, 2]), ("indptr does not match",)),
    "data short": (compressed(data=[1]), ("differ in length",)),
    "bsr flat": (compressed(format=b"bsr"), ("not a list of blocks",)),
    "bsr ragged": (compressed(format=b"bsr", data=np.ones((2, 2, 2))), ("do not fill",)),
    "bsr short": (compressed(format=b"bsr", data=np.ones((1, 1, 1))), ("differ in length",)),
    "dia ragged": (npz(format=b"dia", shape=(2, 2), data=np.ones((2, 2)), offsets=[0]), ("offsets",)),
}


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES.keys())
def test_files_that_are_no_layout(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    path = tmp_path / "layout.npy"
    path.write_bytes(content)
    refused(path, str(path), *words)


def test_a_damaged_member_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(npz(mask=example(30, 30)))
    whole[400] ^= 0xFF
    (tmp_path / "layout.npz").write_bytes(whole)
    refused(tmp_path / "layout.npz", "truncated or damaged .npz")


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", mask=np.zeros((2000, 2000), bool))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    assert Layout.load(tmp_path / "bomb.npz").nnz == 0
    monkeypatch.setattr("bsgen.files.MOST_NPZ_BYTES", 1_000_000)
    refused(tmp_path / "bomb.npz", "4000128 bytes, expected at most 1000000")


def test_a_small_file_that_claims_a_large_shape_takes_little_memory(tmp_path: Path) -> None:
    """Two stored blocks of 2^31: all but their pages stay untouched."""
    side = 46340
    scipy.sparse.save_npz(tmp_path / "large.npz", scipy.sparse.coo_matrix(([1.0, 1.0], ([0, 9], [5, 7])), (side, side)))
    code = (
        "from pathlib import Path; from bsgen.masks import read_mask\n"
        f"mask = read_mask({str(tmp_path / 'large.npz')!r})\n"
        "peak = [line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM:')]\n"
        "print(mask.shape[0], mask[9, 7], int(peak[0].split()[1]) < 500_000)"  # getrusage counts the parent's before exec
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.split() == [str(side), "True", "True"]


def test_a_pytorch_checkpoint_is_no_layout(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
    refused(tmp_path / "model.pt", "model.pt", "holds no arrays")


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    refused(tmp_path / "none.npy", "none.npy", "No such file", "readable file")
    refused(str(tmp_path), "Is a directory")
    refused("bad\0name.npy", "cannot be read")


def test_weights_file_points_to_convert(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    refused(tmp_path / "model.safetensors", "bsgen layout convert")


# Content


@given(mask=masks)
def test_facts_match_the_mask(mask: np.ndarray) -> None:
    layout = Layout(mask)
    assert layout.shape == mask.shape
    assert layout.size == mask.size
    assert layout.nnz == mask.sum() == len(layout.blocks)
    assert layout.density == pytest.approx(mask.mean())
    assert layout.blocks.dtype == np.int32
    assert np.array_equal(layout.blocks, np.argwhere(mask))
    assert np.array_equal(layout.fan_in, mask.sum(axis=0))
    assert np.array_equal(layout.fan_out, mask.sum(axis=1))
    assert layout.transpose() == Layout(mask.T)
    assert layout.transpose().transpose() == layout


@given(mask=masks)
def test_statistics_match_the_mask(mask: np.ndarray) -> None:
    facts = Layout(mask).statistics()
    for spread, counts, empty in (
        (facts.fan_in, mask.sum(axis=0), facts.empty_columns),
        (facts.fan_out, mask.sum(axis=1), facts.empty_rows),
    ):
        assert (spread.min, spread.max) == (counts.min(), counts.max())
        assert spread.mean == pytest.approx(counts.mean())
        assert spread.imbalance == pytest.approx(counts.max() / counts.mean() if counts.any() else 1)
        assert empty == (counts == 0).sum()
    assert facts.imbalance == max(facts.fan_in.imbalance, facts.fan_out.imbalance)


def test_statistics_as_dict_are_plain_numbers() -> None:
    facts = Layout([[1, 1, 0], [0, 1, 0]]).statistics().as_dict()
    assert facts == {
        "rows": 2,
        "cols": 3,
        "nnz": 3,
        "density": 0.5,
        "fan_in": {"min": 0, "mean": 1.0, "max": 2, "imbalance": 2.0},
        "fan_out": {"min": 1, "mean": 1.5, "max": 2, "imbalance": pytest.approx(4 / 3)},
        "empty_rows": 0,
        "empty_columns": 1,
        "imbalance": 2.0,
    }
    assert {type(facts[key]) for key in ("rows", "nnz", "empty_rows")} == {int}


def test_no_stored_block_is_a_layout() -> None:
    layout = Layout(np.zeros((3, 4)))
    assert (layout.nnz, layout.density, layout.blocks.shape) == (0, 0.0, (0, 2))
    assert layout.statistics().imbalance == 1
    assert "█" not in layout.text()
    assert "#" not in Layout(np.zeros((300, 300))).text(ascii=True).rpartition("+")[0]


def test_digest_is_fixed_and_sees_every_bit_and_the_shape() -> None:
    # Stored artefacts are found by this name: it must not change between versions.
    assert Layout([[1, 0], [0, 1]]).digest == "89fa05d3dc69032f"
    mask = example()
    digests = {Layout(mask).digest, Layout(mask.T).digest, Layout(mask.reshape(9, 6)).digest}
    for position in np.ndindex(mask.shape):
        flipped = mask.copy()
        flipped[position] ^= True
        digests.add(Layout(flipped).digest)
    assert len(digests) == 3 + mask.size
    # The same packed bytes, of other shapes.
    assert len({Layout(np.zeros((1, cols))).digest for cols in range(1, 9)}) == 8


@given(first=masks, second=masks)
def test_equality_and_hash_are_by_content(first: np.ndarray, second: np.ndarray) -> None:
    same = first.shape == second.shape and bool((first == second).all())
    assert (Layout(first) == Layout(second)) == same
    assert (Layout(first).digest == Layout(second).digest) == same
    assert hash(Layout(first)) == hash(Layout(first.copy()))


def test_a_layout_equals_nothing_else() -> None:
    assert Layout([[1]]) != [[1]]
    assert Layout([[1]]) != np.ones((1, 1))


def test_a_layout_cannot_be_changed() -> None:
    mask = example()
    layout = Layout(mask)
    before = layout.digest
    mask ^= True
    assert Layout(layout.mask).digest == before
    for array in (layout.mask, layout.blocks, layout.fan_in, layout.fan_out):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        layout.mask = mask  # type: ignore[misc]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda layout: pickle.loads(pickle.dumps(layout))])
def test_copies_are_equal_and_read_only(clone: Any) -> None:
    layout = clone(Layout(example()))
    assert layout == Layout(example())
    assert not layout.mask.flags.writeable


def test_repr_says_what_it_is() -> None:
    assert repr(Layout([[1, 0]])) == f"Layout(1 x 2 blocks, 1 stored, density 0.5, digest {Layout([[1, 0]]).digest})"


# Saving


def test_save_replaces_whole_files_and_keeps_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "layout.npy"
    path.write_bytes(b"old")
    Layout(example()).save(path)
    assert Layout.load(path) == Layout(example())
    assert [entry.name for entry in tmp_path.iterdir()] == ["layout.npy"]
    (tmp_path / "usual").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_save_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "layout.npy").symlink_to(tmp_path / "there" / "real.npy")
    Layout(example()).save(tmp_path / "layout.npy")
    assert (tmp_path / "layout.npy").is_symlink()
    assert Layout.load(tmp_path / "there" / "real.npy") == Layout(example())


@pytest.mark.parametrize("write", [Layout.save, Layout.save_png])
def test_places_that_cannot_be_written(tmp_path: Path, write: Any) -> None:
    suffix = ".npy" if write is Layout.save else ".png"
    (tmp_path / "file").touch()
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("none/layout", "file/layout", "folder"):
        with pytest.raises(LayoutError, match="cannot be written"):
            write(Layout(example()), tmp_path / f"{name}{suffix}")
    with pytest.raises(LayoutError, match=f"ends in {suffix}"):
        write(Layout(example()), tmp_path / "layout.txt")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", f"folder{suffix}"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layout.npy"
    path.write_bytes(b"old")

    def fail(self: Path, target: Any) -> Path:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(LayoutError, match="No space left on device"):
        Layout(example()).save(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["layout.npy"]


# Pictures


def inside(text: str) -> list[str]:
    """The lines of a picture without its frame and explanation."""
    lines = text.split("\n")
    assert len({len(line) for line in lines[:-1]}) == 1
    return [line[1:-1] for line in lines[1:-2]]


@given(mask=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_small_pictures_show_each_block(mask: np.ndarray) -> None:
    plain = inside(Layout(mask).text(ascii=True))
    assert np.array_equal(np.array([list(line) for line in plain]) == "#", mask)
    halves = np.array([list(line) for line in inside(Layout(mask).text())])
    shown = np.stack([np.isin(halves, ["▀", "█"]), np.isin(halves, ["▄", "█"])], axis=1).reshape(-1, mask.shape[1])
    assert np.array_equal(shown[: len(mask)], mask)
    assert not shown[len(mask) :].any()


@given(
    mask=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=90)),
    width=st.integers(1, 30),
    height=st.integers(1, 12),
    plain=st.booleans(),
)
def test_pictures_keep_to_their_size_and_are_blank_only_where_nothing_is(
    mask: np.ndarray, width: int, height: int, plain: bool
) -> None:
    text = Layout(mask).text(width, height, ascii=plain)
    lines = inside(text)
    assert len(lines) <= height
    assert len(lines[0]) <= width
    assert not plain or text.isascii()
    blank = sum(line.count(" ") for line in lines)
    cells = sum(map(len, lines))
    rows, cols = mask.shape
    if rows > (1 if plain else 2) * height or cols > width:
        step = max(-(-cols // width), -(-rows // (2 * height)))
        assert f"{2 * step} x {step} blocks" in text
        tiles = [mask[i : i + 2 * step, j : j + step] for i in range(0, rows, 2 * step) for j in range(0, cols, step)]
        assert cells == len(tiles)
        assert blank == sum(not tile.any() for tile in tiles)


def cells(counts: np.ndarray) -> np.ndarray:
    """A mask whose rectangles of 8 x 4 blocks have `counts` stored blocks."""
    filled = np.arange(32).reshape(8, 1, 4) < counts[:, None, :, None]
    return filled.reshape(8 * counts.shape[0], 4 * counts.shape[1])


def test_shades_follow_the_scale_of_the_explanation() -> None:
    counts = np.tile([0, 1, 4, 5, 8, 9, 16, 17, 32], (10, 4))
    text = Layout(cells(counts)).text(40, 10)
    assert inside(text) == [" ░░▒▒▓▓██" * 4] * 10
    assert text.endswith("8 x 4 blocks, blank: none stored, ░ <= 12 % < ▒ <= 25 % < ▓ <= 50 % < █")
    assert inside(Layout(cells(counts)).text(40, 10, ascii=True)) == [" ..::++##" * 4] * 10


def test_one_dense_corner_does_not_bleach_the_rest() -> None:
    counts = np.ones((10, 40), int)
    counts[0, 0] = 32
    lines = inside(Layout(cells(counts)).text(40, 10))
    assert lines == ["█" + "▒" * 39] + ["▒" * 40] * 9


def test_a_full_layout_is_drawn_full() -> None:
    assert set("".join(inside(Layout(np.ones((300, 300))).text(40, 10)))) == {"█"}


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5), (2.5, 5)])
def test_picture_sizes_are_checked(width: Any, height: Any) -> None:
    with pytest.raises(ArgumentError, match="expected an integer of at least 1"):
        Layout([[1]]).text(width, height)


def decoded(png: bytes) -> np.ndarray:
    """The pixels of an 8-bit grey PNG without filters, every checksum verified."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = {}, 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind, data = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        assert struct.unpack(">I", png[position + 8 + length : position + 12 + length])[0] == zlib.crc32(kind + data)
        chunks[kind], position = data, position + 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 0, 0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def test_small_png_magnifies_blocks(tmp_path: Path) -> None:
    mask = example()
    Layout(mask).save_png(tmp_path / "layout.png")
    pixels = decoded((tmp_path / "layout.png").read_bytes())
    scale = picture.PNG_SIDE // 9
    assert pixels.shape == (6 * scale + 1, 9 * scale + 1)
    assert np.array_equal(pixels[scale // 2 :: scale, scale // 2 :: scale] == picture.BLACK, mask)
    assert set(pixels[0]) == {picture.GRID}


def test_large_png_is_pixel_for_block() -> None:
    mask = example(700, 500)
    assert np.array_equal(decoded(picture.png(mask)) == picture.BLACK, mask)


def test_huge_png_is_averaged_and_keeps_lone_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "PNG_MAX_SIDE", 10)
    mask = np.zeros((30, 25), bool)
    mask[4, 7] = True
    mask[27:30, 24] = True
    pixels = decoded(picture.png(mask))
    assert pixels.shape == (10, 9)
    assert (pixels == picture.WHITE).sum() == 88
    assert picture.BLACK < pixels[1, 2] < picture.GRID
    assert pixels[9, 8] == picture.BLACK
