"""The committed samples: exactly what the compiler emits today, and one of every kind."""

import subprocess
import sys
from pathlib import Path

import pytest

from bsgen import samples
from bsgen.emit import environment, render
from bsgen.problem import Op

FOLDER = Path(__file__).parent.parent / samples.FOLDER
AGAIN = "python -m bsgen.samples"


@pytest.mark.parametrize("sample", samples.SAMPLES, ids=lambda sample: sample.name)
def test_samples_are_what_the_compiler_emits(sample):
    file = FOLDER / f"{sample.name}.cu"
    committed = file.read_bytes() if file.exists() else b""
    assert committed == sample.text.encode(), f"{file} is not what is emitted now; if that is meant, run: {AGAIN}"


def test_there_are_no_other_samples():
    names = {file.name for file in FOLDER.iterdir()}
    assert names == {f"{sample.name}.cu" for sample in samples.SAMPLES}, f"run: {AGAIN}"


def test_every_family_and_op_has_a_sample_that_is_named_after_it():
    plans = {sample.name: sample.plan for sample in samples.SAMPLES}
    kinds = {(plan.family, plan.problem.op) for plan in plans.values()}
    assert kinds == {(family, op) for family in ("hopper", "portable", "simt") for op in Op}
    for name, plan in plans.items():
        assert name.startswith(f"{plan.family}_{plan.problem.op}_b{plan.problem.block_size}_{plan.problem.dtype}")
        reduced = "_reduce(" in render(plan).text
        assert reduced or not name.endswith("_split")


def test_writing_leaves_only_current_samples(tmp_path):
    (tmp_path / "stale.cu").write_text("")
    written = samples.write(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert {file.stem for file in written} == {sample.name for sample in samples.SAMPLES}


def test_the_same_bytes_in_another_process():
    name = samples.SAMPLES[0].name
    script = f"from bsgen import samples; print(next(s for s in samples.SAMPLES if s.name == {name!r}).text, end='')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode() == samples.SAMPLES[0].text


def test_samples_use_every_template_of_kernels():
    environment().cache.clear()  # what earlier tests loaded
    for sample in samples.SAMPLES:
        assert sample.text
    loaded = {name for _, name in environment().cache.keys()}  # noqa: SIM118 (a Jinja cache is no dict)
    assert {name for name in environment().list_templates() if not name.startswith("c/")} == loaded
