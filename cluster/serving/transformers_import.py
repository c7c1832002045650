"""The import of transformers in two thirds of its time.

It reads its own three thousand files then, for the names that each gives, and looks at every line of them, though a file says
that in its last ones. Without what is replaced here it does as ever.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_READER, _FUNCTION = "transformers.utils.import_utils", "fetch__all__"
_NAMES = "\n__all__"


@contextlib.contextmanager
def last_lines_read() -> Iterator[None]:
    """Whoever imports transformers meanwhile has it read the last lines of its files alone."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds the module that reads the files, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _READER else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_replace(module: ModuleType) -> None:
                execute(module)
                names_of = getattr(module, _FUNCTION, None)
                if names_of is not None:
                    setattr(module, _FUNCTION, of_last_lines(names_of))

            spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


def of_last_lines(names_of: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """names_of: the names that a file gives, by its content, of which the last assignment counts."""

    def names(content: str) -> list[str]:
        return names_of(content[max(content.rfind(_NAMES), 0) :].lstrip("\n"))

    return names
