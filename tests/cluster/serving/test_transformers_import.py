"""The import of transformers: what is read of its files is what it reads of them itself."""

from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

import transformers

from cluster.serving.transformers_import import _READER, _Finder, of_last_lines

MODELS = Path(transformers.__file__).parent / "models"


def read_by(finder):
    """The module that reads the files, as this finds it."""
    spec = finder.find_spec(_READER, transformers.utils.__path__)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_of_a_file_are_those_that_transformers_finds():
    own = read_by(PathFinder).fetch__all__
    files = sorted(MODELS.glob("*/*.py"))[::10]
    names = of_last_lines(own)
    contents = [
        *(file.read_text(encoding="utf-8") for file in files), "", "x = 1\n", '\n__all__ = ["a"]', '__all__ = ["a"]\n',
        '__all__ = ["a"]\n__all__ = [\n    "b",\n]\n', 'x = "__all__"\n', '# the __all__\n\n__all__ = ["c"]\n',
    ]  # fmt: skip
    found = [names(content) for content in contents]
    assert found == [own(content) for content in contents]
    assert sum(map(bool, found)) > len(contents) / 2


def test_module_that_reads_them_is_found_with_that_in_place():
    module = read_by(_Finder())
    assert module.fetch__all__.__module__ == of_last_lines.__module__
    assert module.fetch__all__('__all__ = ["a"]') == ["a"]
    assert _Finder().find_spec("transformers.utils.logging", transformers.utils.__path__) is None
