"""The public names of the packages."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

import msa_model
from msa_model import data


@pytest.mark.parametrize("package", [msa_model, data], ids=lambda package: package.__name__)
def test_every_public_name_can_be_imported(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing


def test_the_names_of_version_0_1_are_there():
    assert set(msa_model.__all__) >= {
        "AttentionBlock",
        "Discriminator",
        "Generator",
        "GeneratorConfig",
        "InpaintingLoss",
        "demo_weights",
        "free_form_mask",
        "inpaint",
        "load_released",
    }


def test_the_console_script_names_a_function():
    root = Path(msa_model.__file__).parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("the package is not used from its source folder")
    script = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]["msa"]
    module, function = script.split(":")
    assert callable(getattr(importlib.import_module(module), function))


#: Each package may import itself and those before it; nn and data do not import one another.
ORDER = ("nn", "data", "inpainting", "evaluate", "train", "cli")


def test_packages_import_in_one_direction():
    root = Path(msa_model.__file__).parent
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in ORDER:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            package = parts[: len(parts) - node.level]
            for target in [node.module] if node.module else [alias.name for alias in node.names]:
                imported = (*package, *target.split("."))[0]
                if imported in ORDER:
                    assert ORDER.index(imported) <= ORDER.index(parts[0]), path
                    assert {imported, parts[0]} != {"nn", "data"}, path
