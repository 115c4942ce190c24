"""The tool that takes kernels apart on a GPU (tests/gpu/dissect.py) finds its places in the text that is emitted now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from bsgen import nvrtc, samples
from bsgen.emit import Source, render
from bsgen.plan import HopperNarrowPlan, HopperPlan

PRODUCTS = [each for each in samples.SAMPLES if each.arch == samples.HOPPER and "wgrad" not in each.name]


@pytest.fixture(scope="module")
def cuts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuts", Path(__file__).parent / "gpu" / "cuts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("each", PRODUCTS, ids=lambda each: each.name)
def test_every_part_is_found(each: samples.Sample, cuts: ModuleType) -> None:
    plan = each.plan
    if not isinstance(plan, HopperPlan | HopperNarrowPlan):
        pytest.skip("not of a kernel that is taken apart")
    text = render(plan).text
    for name, made in cuts.PARTS.items():
        changed = text
        for cut in made:
            before, changed = changed, cut(changed)
            assert changed != before, name
    marked = cuts.marked(text, 1 << 40)
    assert marked.count("mark(at") >= 6, "waits and comes of both, leaves, stored"


def test_what_is_not_there_is_an_error(cuts: ModuleType) -> None:
    with pytest.raises(cuts.Unknown, match="multiply_stage"):
        cuts.without_multiplies("nothing")


@pytest.mark.parametrize("name", ["hopper_fprop_b32_bfloat16_rings", "hopper_fprop_b8_bfloat16_streamed"])
def test_what_is_left_compiles(name: str, cuts: ModuleType) -> None:
    (each,) = (each for each in PRODUCTS if each.name == name)
    source = render(each.plan)
    texts = [cuts.marked(source.text, 1 << 40)]
    for made in cuts.PARTS.values():
        text = source.text
        for cut in made:
            text = cut(text)
        texts.append(text)
    for text in texts:
        binary = nvrtc.compile(Source(source.name, text, source.entries, source.options), "sm_90a")
        assert all(kernel.spill_stores == 0 for kernel in binary.kernels)
