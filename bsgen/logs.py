"""BSGEN_LOG: what bsgen says of itself, on standard error; without it, only what Python shows of the logger "bsgen" anyway."""

from __future__ import annotations

import logging
import os
import sys

LEVELS = ("debug", "info", "warning", "error")


def configure() -> None:
    """Show messages from the level that BSGEN_LOG names on; another word is said to be none, and taken as info."""
    word = os.environ.get("BSGEN_LOG", "").strip().lower()
    log = logging.getLogger("bsgen")
    if not word or any(handler.get_name() == "BSGEN_LOG" for handler in log.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name("BSGEN_LOG")
    handler.setFormatter(logging.Formatter("bsgen %(levelname)s %(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(word.upper() if word in LEVELS else logging.INFO)
    if word not in LEVELS:
        log.warning("BSGEN_LOG: got %r, expected one of %s; taking info", word, ", ".join(LEVELS))
