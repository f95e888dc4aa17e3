"""Checks the README and the pages of docs/: snippets run, links and pictures exist, nothing else is referred to."""

import re

import pytest
import torch

from .pages import PAGES, ROOT, anchors, blocks, links, name

LANGUAGES = {"python", "sh", "console", "cpp"}
#: Its Python shows an operator that does not exist.
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
INCLUDED = re.compile(r'--8<-- "([^"]+)"')


def python_blocks(page):
    return [block for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name)
def test_snippets_of_a_page_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Tracing the snippets shows graph breaks. Generating code from them would take most of a minute.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile_(*args, **options, backend="eager"))
    names = {"__name__": "__main__"}
    for block in python_blocks(page):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if page != CONTRIBUTING and (torch.cuda.is_available() or not block.needs_gpu):
            exec(code, names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_of_a_kind_that_is_tested(page):
    others = [block for block in blocks(page) if block.language not in LANGUAGES]
    for block in others:
        assert INCLUDED.fullmatch(block.text.strip()) or block.language == "text", f"line {block.line}: {block.text}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_link_targets_exist(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"
    for path in INCLUDED.findall(page.read_text()):
        assert (ROOT / path).is_file(), f"{path} does not exist"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents}
    assert pages == set(re.findall(r"^ +- .*: (\S+\.md)$", navigation, re.MULTILINE))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_sources_refer_to_no_document_that_the_repository_does_not_hold():
    reference = re.compile(r"\b(SPEC|DESIGN)(\.md| \d)|\b[Ii]ssue \d")
    suffixes = {".py", ".md", ".h", ".cpp", ".cu", ".cuh", ".toml", ".yml", ".yaml", ""}
    folders = ["csrc", "msa_ops", "msa_model", "benchmarks", "tests", "docs", ".ci"]
    files = [file for file in ROOT.iterdir() if file.is_file() and file.name != "CHANGELOG.md"]
    files += [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in files
        if file.suffix in suffixes and "__pycache__" not in file.parts and not file.name.startswith(".git")
        for match in reference.finditer(file.read_text())
    ]
    assert not found
