"""The shape of the package, read off its files: which way imports point, and that file, class, contents page and test keep step."""

import ast
import functools
import graphlib
import importlib
import inspect
from pathlib import Path

import pytest

import modicum
from modicum.core.method import FAMILIES, registry

ROOT = Path(modicum.__file__).parent
TESTS = Path(__file__).parents[1]
# Who may import whom: a package sees those in lines above its own, and those beside it.
ORDER = [
    ("core",),
    ("forms",),
    ("numerics", "models", "data", "sweep"),
    FAMILIES,
    ("allocate", "vocabulary", "delta"),
    ("export",),
    ("work", "runtime", "table"),
    ("judge",),
    ("measure",),
    ("train",),
    ("merging",),
    ("fit",),
    ("receipt",),
    ("edit", "forget"),
    ("learn",),
    ("cli",),
]
RANK = {name: place for place, names in enumerate(ORDER) for name in names}


@functools.cache
def imports(path):
    """(package, module) of every import of modicum's own that runs, wherever it stands; annotations' are left out."""
    found = []

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names = [own(node.module, alias.name) for alias in node.names]
        found.extend((name.split(".")[1], name) for name in names if name.startswith("modicum."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def own(module, name):
    """The module that ``from module import name`` reads."""
    inside = ROOT.joinpath(*module.split(".")[1:], name)
    return f"{module}.{name}" if module.split(".")[0] == "modicum" and (inside.is_dir() or inside.with_suffix(".py").exists()) else module


def files():
    return sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in RANK)


def method_files():
    return sorted(path for family in FAMILIES for path in (ROOT / family).glob("*.py") if not path.name.startswith("_"))


each_method_file = pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in method_files()])


def test_every_package_has_its_place():
    packages = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert packages - RANK.keys() == {"testing"}, "a new folder needs a line in ORDER"
    assert RANK.keys() <= packages


def test_imports_point_one_way():
    for path in files():
        own = path.relative_to(ROOT).parts[0]
        for package, name in imports(path):
            assert package in RANK, f"{name} is of no layer"
            assert RANK[package] <= RANK[own], f"{path.relative_to(ROOT)} imports {name}, which stands above it"


def test_packages_do_not_import_in_circles():
    edges = {name: set() for name in RANK}
    for path in files():
        own = path.relative_to(ROOT).parts[0]
        edges[own] |= {other for other, _ in imports(path) if other != own}
    graphlib.TopologicalSorter(edges).prepare()  # raises CycleError


def test_modules_do_not_import_in_circles():
    edges = {".".join(("modicum", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path for path in files()}
    graphlib.TopologicalSorter({name: {other for _, other in imports(path)} for name, path in edges.items()}).prepare()


def test_no_file_is_too_long_to_read():
    assert not [str(path) for path in files() if len(path.read_text(encoding="utf-8").splitlines()) > 400]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_never_import_each_other(family):
    for path in (ROOT / family).rglob("*.py"):
        others = {package for package, _ in imports(path)} & (set(FAMILIES) - {family})
        assert not others, f"{path.relative_to(ROOT)} imports of {others}"


@each_method_file
def test_methods_import_only_their_family_or_a_stand_in(path):
    family = path.parent.name
    others = [name for package, name in imports(path) if package == family and not name.split(".")[2].startswith("_")]
    if others:
        (cls,) = (cls for cls in registry().values() if cls.__module__ == f"modicum.{family}.{path.stem}")
        stand_in = inspect.get_annotations(cls.without_data)["return"]
        assert others == [f"modicum.{family}.{stand_in.lower()}"], "only the stand-in without data is another method"
        assert f"``{stand_in.lower()}``" in cls.__doc__, "and the docstring names it"


def camel(name):
    return "".join(word.capitalize() for word in name.split("_"))


@each_method_file
def test_file_class_contents_and_test_keep_step(path):
    family, name = path.parent.name, path.stem
    module, contents = (importlib.import_module(f"modicum.{family}{part}") for part in (f".{name}", ""))
    public = [
        key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__ and key[0] != "_"
    ]
    assert public == [camel(name)]
    assert registry()[f"{family}/{name}"] is getattr(module, camel(name)) is getattr(contents, camel(name))
    assert camel(name) in contents.__all__
    assert (TESTS / family / f"test_{name}.py").exists(), f"tests/{family}/test_{name}.py is missing"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("family", FAMILIES)
def test_contents_pages_are_one_sentence_and_a_sorted_list(family):
    contents = importlib.import_module(f"modicum.{family}")
    assert contents.__doc__.strip().count("\n") == 0 and contents.__doc__.strip().endswith(".")
    assert contents.__all__ == sorted(camel(path.stem) for path in method_files() if path.parent.name == family)


def test_modules_say_what_they_are():
    untold = [path for path in files() if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not untold, [str(path.relative_to(ROOT)) for path in untold]


def test_names_carry_meaning():
    assert not {path.stem for path in files()} & {
        "utils",
        "_utils",
        "base",
        "_base",
        "helpers",
        "_helpers",
        "manager",
        "handler",
        "misc",
        "common",
    }
