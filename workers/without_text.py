"""mlx-lm without the half of it that reads and writes text: a worker knows token ids alone.

Importing that half, transformers with it, takes two thirds of a worker's start. What stands here for it says so where
somebody asks for it after all. `python -m workers.without_text MODULE ...` runs a module so.
"""

import contextlib
import importlib.util
import runpy
import sys
from types import ModuleType
from typing import Any, NoReturn


def import_without_text() -> None:
    """From now on mlx_lm is its models, caches, samplers and loading of weights. Call it before anything imports mlx_lm.

    Raises ImportError: mlx_lm is not there.
    """
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None:
        raise ImportError("mlx-lm is not installed")
    # Its own code, which imports the rest, stays unrun.
    sys.modules.setdefault("mlx_lm", importlib.util.module_from_spec(spec))
    sys.modules.setdefault("mlx_lm.tokenizer_utils", _NoTokenizers("mlx_lm.tokenizer_utils"))


class _NoTokenizers(ModuleType):
    """In the place of mlx_lm.tokenizer_utils, for `mlx_lm.utils`, which imports these two to load tokenizers."""

    TokenizerWrapper = object

    @staticmethod
    def load(*_: Any, **__: Any) -> NoReturn:
        raise ImportError("a worker loads no tokenizer")


def main() -> None:
    """Run the module that is the first argument with the others."""
    with contextlib.suppress(ImportError):  # the module says so if it needs mlx-lm
        import_without_text()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
