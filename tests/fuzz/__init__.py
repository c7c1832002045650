"""Bytes from strangers: what must hold of any of them. `python -m tests.fuzz` looks for some of which it does not."""
