"""Examples that run as they are: `python -m bsgen.examples.enwik8`, `python -m bsgen.examples.minilm`. They need bsgen[torch]."""
