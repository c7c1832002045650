"""The rules of the house, which CONTRIBUTING.md explains: sizes, names, the voice of errors, imports, pages."""

import ast
import functools
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
HOUSES = ("strategy", "protocol", "cluster", "workers")
OUTSIDE = ("benchmarks", "tests")
FOLDERS = (*HOUSES, *OUTSIDE, "models")
SCRIPTS = ("launch.sh", ".ci/run")

FILE_LINES = 400
FUNCTION_LINES = 40
OWNER_ATTRIBUTES = 12
# Words that begin with a capital letter wherever they stand.
PROPER_NOUNS = frozenset({"Tandem", "Python"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def product() -> dict[str, ast.Module]:
    """Every Python file by its path from the checkout on, parsed; but for the tests: those are lists of cases, as long as there
    are cases.
    """
    files = sorted(file for folder in FOLDERS if folder != "tests" for file in (CHECKOUT / folder).rglob("*.py"))
    return {file.relative_to(CHECKOUT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


@pytest.fixture(scope="module", autouse=True)
def parsed_files_go_with_this_module():
    """Half a million objects, which each garbage collection after this would look at."""
    yield
    product.cache_clear()


def of_houses() -> Iterator[tuple[str, ast.Module]]:
    return ((path, module) for path, module in product().items() if path.split("/")[0] in HOUSES)


def definitions(module: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Every class and function of a module with its dotted name, those inside others too."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function | ast.ClassDef):
                yield prefix + child.name, child
                yield from inside(child, f"{prefix}{child.name}.")
            else:
                yield from inside(child, prefix)

    return inside(module, "")


def long_files() -> Iterator[str]:
    for path in (*product(), *SCRIPTS):
        if len((CHECKOUT / path).read_text(encoding="utf-8").splitlines()) > FILE_LINES:
            yield path


def long_functions() -> Iterator[str]:
    for path, module in product().items():
        for name, node in definitions(module):
            if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES:
                yield f"{path} {name}"


def owners_of_too_much() -> Iterator[str]:
    for path, module in product().items():
        for name, node in definitions(module):
            if isinstance(node, ast.ClassDef) and len(own_attributes(node)) > OWNER_ATTRIBUTES:
                yield f"{path} {name}"


def own_attributes(owner: ast.ClassDef) -> set[str]:
    """The names that a class's own methods assign on `self`."""
    return {
        node.attr
        for node in ast.walk(owner)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def class_names_with_two_meanings(*, private: bool) -> Iterator[str]:
    places = defaultdict(list)
    for path, module in of_houses():
        for node in module.body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("_") == private:
                places[node.name].append(path)
    return (name for name, paths in places.items() if len(paths) > 1)


def errors_in_another_voice() -> Iterator[str]:
    """Messages of TandemErrors that are not a clause: `as_sentence` completes them where they are shown."""
    ours = names_of_our_errors()
    for path, module in of_houses():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours and node.args:
                yield from (f"{path}: {message}" for message in messages(node.args[0]) if not is_clause(message))


def names_of_our_errors() -> set[str]:
    """TandemError and every class below it, wherever it is defined."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for _, module in of_houses()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    }
    ours: set[str] = {"TandemError"}
    while further := {name for name, above in bases.items() if above & ours} - ours:
        ours |= further
    return ours


def messages(node: ast.expr) -> Iterator[str]:
    """The texts that an argument can be, with {} for what is filled in; nothing for a text made elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
        case ast.IfExp(body=first, orelse=second):
            yield from messages(first)
            yield from messages(second)


def is_clause(message: str) -> bool:
    """Whether it begins with a small letter or a name, and has no full stop."""
    first = re.match(r"[A-Z][a-z]+\b(?![-_./])", message)
    return (first is None or first[0] in PROPER_NOUNS) and not message.endswith(".")


RULES = {
    "files": long_files,
    "functions": long_functions,
    "owners": owners_of_too_much,
    "public names": functools.partial(class_names_with_two_meanings, private=False),
    "private names": functools.partial(class_names_with_two_meanings, private=True),
    "errors": errors_in_another_voice,
}


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_kept(rule):
    assert set(RULES[rule]()) == set()


def import_rules() -> dict:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]


def test_every_house_has_an_import_rule_and_there_is_no_other_house():
    rules = import_rules()
    assert set(rules["root_packages"]) == set(HOUSES)
    packages = {file.parent.name for file in CHECKOUT.glob("*/__init__.py")}
    assert packages - set(OUTSIDE) == set(HOUSES)
    assert any(set(rule.get("forbidden_modules", ())) == set(OUTSIDE) for rule in rules["contracts"])


def test_every_room_of_the_control_plane_has_its_layer():
    (rule,) = [rule for rule in import_rules()["contracts"] if rule["type"] == "layers"]
    layered = {module for layer in rule["layers"] for module in layer.split(" | ")}
    assert layered - {"cluster.coordinator"} == {
        f"cluster.{file.parent.name}" for file in (CHECKOUT / "cluster").glob("*/__init__.py")
    }


@pytest.mark.parametrize(
    ("house", "closed"), [("strategy", {"protocol", "cluster", "workers"}), ("protocol", {"cluster", "workers"})]
)
def test_lower_houses_import_no_upper_one(house, closed):
    rules = [rule for rule in import_rules()["contracts"] if rule.get("source_modules") == [house]]
    assert any(closed <= set(rule["forbidden_modules"]) and "ignore_imports" not in rule for rule in rules)


def test_cluster_and_workers_are_independent_without_exceptions():
    (rule,) = [rule for rule in import_rules()["contracts"] if rule["type"] == "independence"]
    assert set(rule["modules"]) == {"cluster", "workers"}
    assert "ignore_imports" not in rule


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_pages_name_only_what_is_there(page):
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    named = re.findall(rf"(?:^ {{4}}|`)((?:{'|'.join(FOLDERS)}|docs|configs)/[\w./-]*)", text, re.MULTILINE)
    linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [path for path in (*named, *linked) if not (CHECKOUT / path).exists()] == []
