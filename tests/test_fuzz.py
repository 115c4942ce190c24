"""Mutated packs, layouts, weights and specs: an error of ours each time, no crash, no hang, bounded memory.

BSGEN_TEST_FUZZ=10000 for the long version, so many files of each kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pytest
import scipy.sparse
from click.testing import CliRunner

import bsgen
from bsgen.cli import main
from bsgen.errors import BsgenError
from bsgen.layout import Layout
from bsgen.packs import building, format, load_pack
from bsgen.packs.format import DIGEST, LENGTH, PREFIX
from bsgen.packs.spec import read_spec
from bsgen.weights import layout_from_weights, read_weights

COUNT = int(os.environ.get("BSGEN_TEST_FUZZ", "400"))
MOST_SECONDS, MOST_BYTES = 10.0, 1 << 29  # of one file, however slow the machine; of all
SPEC = """\
arch = ["sm_90a", "sm_80"]
rows = [64, 4096]

[[module]]
name = "ffn.0"
layout = "a.npy"
bias = true
activation = "gelu"
residual = false
ops = ["fprop", "dgrad"]

[[module]]
name = "ffn.1"
model = "model.npy"
density = 0.5
norm = "max"
transpose = true
block_size = 16
dtype = "float32"
precision = "ieee"
arch = "sm_80"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What specs name, and a pack."""
    place = tmp_path_factory.mktemp("fuzz")
    bsgen.topology.banded(3, 4, 2).save(place / "a.npy")
    np.save(place / "model.npy", np.random.default_rng(0).standard_normal((48, 32)).astype(np.float32))
    (place / "spec.toml").write_text(SPEC)
    building.build(read_spec(place / "spec.toml"), place / "good.bsp", processes=1)
    return place


def survive(files: Iterator[bytes], place: Path, use: Callable[[Path], object]) -> int:
    """Use every file: it works, or an error of ours says why not, soon and in bounded memory. How many worked."""
    worked, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i, data in enumerate(files):
        place.write_bytes(data)
        begin = time.perf_counter()
        try:
            use(place)
            worked += 1
        except BsgenError:
            pass
        except Exception as error:
            kept = place.with_name(f"failed{place.suffix}")
            kept.write_bytes(data)
            pytest.fail(f"file {i}, kept as {kept}: {type(error).__name__}: {error}")
        assert time.perf_counter() - begin < MOST_SECONDS, f"file {i}"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES
    return worked


def mutated(seeds: list[bytes], rng: random.Random) -> Iterator[bytes]:
    for i in range(COUNT):
        changed = mutations.mutate(seeds[i % len(seeds)], rng)
        if changed != seeds[i % len(seeds)]:
            yield changed


# Packs


def use_pack(place: Path) -> None:
    """All that is done with a pack short of launching: every kernel decoded, described and sized."""
    pack = load_pack(place)
    wrong = list(pack.problems())
    for name in pack:
        for arch in pack.arches(name):
            with contextlib.suppress(BsgenError):
                mm = pack.get_for(name, arch)
                for op in mm.ops:
                    operation = mm.operation(op)
                    assert all(launch.grid.size(100, 132) >= 0 for launch in operation.outline.launches)
                    assert operation.outline.workspace.elements(100) >= 0
                    assert operation.variant(3).binary.cubin
                str(mm.report())
    if wrong:
        raise bsgen.PackError(wrong[0])


def with_digest(data: bytes, body: bytes) -> bytes:
    """A pack with another index, whose digest holds: what a hostile one looks like."""
    size = PREFIX.unpack_from(data)[2]
    head = PREFIX.pack(format.MAGIC, format.FORMAT, len(body)) + body
    return head + hashlib.sha256(head).digest() + data[PREFIX.size + size + DIGEST :]


def index_of(data: bytes) -> bytes:
    return data[PREFIX.size : PREFIX.size + PREFIX.unpack_from(data)[2]]


def with_kernel(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A pack of one kernel and one layout whose kernel's header was changed, and all digests hold."""
    fields = json.loads(index_of(data))
    blobs = data[PREFIX.size + len(index_of(data)) + DIGEST :]

    def cut(row: list[Any]) -> bytes:
        return blobs[row[-3] : row[-3] + row[-2]]

    kernel, layout = fields["kernels"][0], fields["layouts"][0]
    (size,) = LENGTH.unpack_from(cut(kernel))
    header = change(cut(kernel)[LENGTH.size : LENGTH.size + size])
    parts = [cut(layout), LENGTH.pack(len(header)) + header + cut(kernel)[LENGTH.size + size :]]
    places = [[0, len(parts[0])], [len(parts[0]), len(parts[1])]]
    for row, part, place in zip((layout, kernel), parts, places, strict=True):
        row[-3:] = [*place, hashlib.sha256(part).hexdigest()]
    fields.update(kernels=[kernel], layouts=[layout], modules=fields["modules"][:1])
    return with_digest(data, json.dumps(fields).encode())[: -len(blobs)] + b"".join(parts)


def test_packs(folder: Path, tmp_path: Path) -> None:
    good = (folder / "good.bsp").read_bytes()
    assert survive(iter([good, with_kernel(good, bytes)]), tmp_path / "x.bsp", use_pack) == 2
    worked = survive(mutated([good], random.Random(1)), tmp_path / "x.bsp", use_pack)
    assert worked == 0, "no changed byte goes unseen"


def test_packs_whose_digests_hold(folder: Path, tmp_path: Path) -> None:
    good, rng = (folder / "good.bsp").read_bytes(), random.Random(2)

    def files() -> Iterator[bytes]:
        for i in range(COUNT):
            change = mutations.mutate_json if i % 3 else mutations.mutate
            if i % 2:
                yield with_digest(good, change(index_of(good), rng))
            else:
                yield with_kernel(good, lambda header: change(header, rng))  # noqa: B023

    assert survive(files(), tmp_path / "x.bsp", use_pack) < COUNT


def test_commands_on_mutated_packs(folder: Path, tmp_path: Path) -> None:
    """No traceback, and an error's exit code."""
    good, rng, place = (folder / "good.bsp").read_bytes(), random.Random(3), tmp_path / "x.bsp"
    for i in range(max(20, COUNT // 20)):
        place.write_bytes(with_kernel(good, lambda header: mutations.mutate_json(header, rng)))
        command = (["inspect", "--json"], ["inspect"], ["verify"], ["diff", str(folder / "good.bsp")])[i % 4]
        done = CliRunner().invoke(main, ["pack", command[0], str(place), *command[1:]])
        assert done.exit_code in (0, 1), done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception


# Layouts and weights


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def layout_seeds() -> list[bytes]:
    mask = np.random.default_rng(0).random((12, 9)) < 0.4
    matrix = scipy.sparse.coo_matrix(mask.astype(np.float32))
    arrays = [mask, mask.astype(np.int64), np.asfortranarray(mask.astype(np.float16)), mask[0]]
    seeds = [saved(lambda file: np.save(file, array)) for array in arrays]  # noqa: B023
    seeds += [saved(lambda file: np.savez(file, mask=mask)), saved(lambda file: np.savez_compressed(file, mask=mask))]
    for kind in ("csr", "csc", "bsr", "coo", "dia"):
        for compressed in (True, False):
            sparse = matrix.asformat(kind)
            seeds.append(saved(lambda file: scipy.sparse.save_npz(file, sparse, compressed=compressed)))  # noqa: B023
    return seeds


def test_layouts(tmp_path: Path) -> None:
    survive(mutated(layout_seeds(), random.Random(4)), tmp_path / "x.npz", Layout.load)


def test_sparse_layouts_with_members_changed(tmp_path: Path) -> None:
    """Archives that are whole, of arrays that do not belong together."""
    rng, values = random.Random(5), np.random.default_rng(5)
    seeds = [dict(np.load(io.BytesIO(seed))) for seed in layout_seeds()[6:]]
    makers: list[Callable[[Any], Any]] = [
        lambda a: a.astype(float) * np.inf,
        lambda a: a.astype(object if a.dtype.kind == "S" else np.float64),
        lambda a: a[..., :-1] if a.ndim else a,
        lambda a: -a.astype(int) if a.dtype.kind in "iuf" else a,
        lambda a: (
            a.astype(np.int64) * rng.choice(mutations.NUMBERS[:12]) if a.dtype.kind in "iuf" else np.array(b"\xff")
        ),
        lambda a: np.stack([a, a]),
        lambda a: np.zeros((0,) * max(a.ndim, 1)),
        lambda a: np.array("csr"),
        lambda a: np.array(values.integers(-5, 50, a.shape)),
        lambda a: np.zeros(a.shape, [("x", "i4")]),
        lambda a: a.astype("M8[s]") if a.dtype.kind in "iu" else a,
        lambda a: a.astype(complex) if a.dtype.kind in "iuf" else a,
    ]

    def files() -> Iterator[bytes]:
        for i in range(COUNT):
            members = dict(seeds[i % len(seeds)])
            for name in rng.sample(sorted(members), rng.choice((1, 1, 2))):
                if rng.randrange(8) == 0:
                    del members[name]
                else:
                    with contextlib.suppress(ValueError, TypeError, OverflowError), np.errstate(all="ignore"):
                        members[name] = rng.choice(makers)(members[name])
            yield saved(lambda file: np.savez(file, **members))  # noqa: B023

    survive(files(), tmp_path / "x.npz", Layout.load)


def test_weights(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.numpy").save
    weights = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    seed, rng = save({"up": weights, "down": weights.T[:32].astype(np.float16), "bias": weights[0]}), random.Random(6)
    (size,) = LENGTH.unpack_from(seed)

    def files() -> Iterator[bytes]:
        for i in range(COUNT):
            if i % 2:
                yield mutations.mutate(seed, rng)
            else:
                header = mutations.mutate_json(seed[8 : 8 + size], rng)
                yield LENGTH.pack(len(header)) + header + seed[8 + size :]

    survive(
        files(), tmp_path / "x.safetensors", lambda place: layout_from_weights(read_weights(place, "up"), 16, 0.5, "l2")
    )


# Specs


def test_specs(folder: Path) -> None:
    rng = random.Random(7)
    files = (mutations.mutate_toml(SPEC, rng).encode("utf-8", "surrogatepass") for _ in range(COUNT))
    assert survive(files, folder / "fuzzed.toml", lambda place: building.count(read_spec(place))) > COUNT // 20


def test_specs_of_any_bytes(folder: Path) -> None:
    survive(mutated([SPEC.encode()], random.Random(8)), folder / "fuzzed.toml", read_spec)
