"""The packages of msa_ops depend on each other in one direction."""

import ast
from pathlib import Path

import msa_ops

PACKAGE = Path(msa_ops.__file__).parent

#: Package -> the packages from which its modules may import, beside itself.
MAY_IMPORT = {
    "core": set(),
    "partial_conv": {"core"},
    "decoder_conv": {"core"},
    "shift_attention": {"core"},
    "convert": {"core", "partial_conv"},
}


def imported_packages(path):
    """The packages of msa_ops that a module imports, of those beside it in the tree."""
    depth = len(path.relative_to(PACKAGE).parts) - 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("msa_ops."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("msa_ops."))


def test_every_package_is_listed():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(MAY_IMPORT)


def test_no_operator_imports_from_another():
    seen = set()
    for path in PACKAGE.glob("*/**/*.py"):
        package = path.relative_to(PACKAGE).parts[0]
        for imported in imported_packages(path):
            seen.add((package, imported))
            assert imported in MAY_IMPORT[package] | {package}, f"{path} imports {imported}"
    assert {("partial_conv", "core"), ("decoder_conv", "core"), ("shift_attention", "core")} <= seen


def test_nothing_imports_triton_at_import_of_the_package():
    """Modules that hold kernels are imported when first used."""
    for path in PACKAGE.glob("**/*.py"):
        in_triton = "triton" in path.relative_to(PACKAGE).parts[:-1]
        imports = [
            node.names[0].name if isinstance(node, ast.Import) else node.module or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0)
        ]
        if path.name in ("conditions.py", "__init__.py") or not in_triton:
            assert not any(name.split(".")[0] == "triton" for name in imports), path
