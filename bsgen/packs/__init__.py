"""Packs: kernels compiled ahead of time in one read-only file, which run without a compiler.

`load_pack` opens one; `bsgen.compile` looks into those of BSGEN_PACK_PATH and of installed wheels first. doc/format: format.py.
"""

from bsgen.packs.pack import Pack, load_pack

__all__ = ["Pack", "load_pack"]
