"""Citations resolve, paths are relative, files and functions stay short."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".bib", ".json", ".cfg", ".sh", ""}
TEXT_FOLDERS = ("src", "tests", "docs", "recipes", "benchmarks", ".ci", ".github")

LONGEST_FILE = 400
LONGEST_FUNCTION = 60

CITATION = re.compile(r"\[([a-z]+[0-9]{4}[a-z]+)\]")
ENTRY = re.compile(r"^@(\w+)\{([^,\s]+),\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^  (\w+) = \{(.+)\},$", re.MULTILINE)
# A folder of one machine, at the start of a path. The letters before the slash belong to a URL or a relative path.
MACHINE_PATH = re.compile(r"(?<![\w.~}\-])(?:/(?:home|root|work|tmp|Users|mnt|scratch)/\w|[A-Z]:\\\w)")


def text_files() -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in TEXT_FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(path for path in files if path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts)


def bibliography() -> dict[str, dict[str, str]]:
    text = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    entries = [(key, dict(FIELD.findall(body))) for _, key, body in ENTRY.findall(text)]
    assert len(entries) == text.count("\n@") + text.startswith("@"), "an entry of references.bib is malformed"
    keys = [key for key, _ in entries]
    assert len(keys) == len(set(keys)), "a key of references.bib is there twice"
    return dict(entries)


def citations(text: str) -> set[str]:
    return set(CITATION.findall(text))


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each comment of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def says_why(source: str, first: int, last: int) -> bool:
    """Whether the first comment between two lines is a `# why` comment."""
    within = [text for line, text in comments(source) if first <= line <= last]
    return bool(within) and within[0].startswith("# why")


def too_long(source: str) -> list[str]:
    """What is too long in a Python file, without a `# why` comment to excuse it."""
    lines = len(source.splitlines())
    found = []
    if lines > LONGEST_FILE and not says_why(source, 1, lines):
        found.append(f"the file has {lines} lines, more than {LONGEST_FILE}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            last = node.end_lineno or node.lineno
            length = last - node.lineno + 1
            if length > LONGEST_FUNCTION and not says_why(source, node.lineno, last):
                found.append(f"{node.name} has {length} lines, more than {LONGEST_FUNCTION}")
    return found


def test_every_citation_resolves() -> None:
    known = bibliography()
    cited_in = [
        path for path in text_files() if path.is_relative_to(ROOT / "src") or path.is_relative_to(ROOT / "docs")
    ]
    missing = {
        f"{path.relative_to(ROOT)}: [{key}]"
        for path in [*cited_in, ROOT / "README.md"]
        for key in citations(path.read_text(encoding="utf-8"))
        if key not in known
    }
    assert missing == set()


def test_something_is_cited() -> None:
    cited = set().union(*(citations(path.read_text(encoding="utf-8")) for path in SOURCES))
    assert "he2016resnet" in cited


def test_the_search_finds_citations() -> None:
    text = "Source: [lee2021ewgs], Eq. 7; see [he2016resnet][wu2023reste]. Not a citation: x[0], [B, C], [1999]."
    assert citations(text) == {"lee2021ewgs", "he2016resnet", "wu2023reste"}


@pytest.mark.parametrize("key", sorted(bibliography()))
def test_each_reference_is_complete(key: str) -> None:
    fields = bibliography()[key]
    assert CITATION.fullmatch(f"[{key}]"), "the key is not of the form name, year, word"
    assert {"author", "title", "year"} <= set(fields)
    assert fields["year"] == re.search(r"[0-9]{4}", key)[0], "the year in the key is not that of the entry"
    assert {"journal", "booktitle", "eprint", "institution", "publisher"} & set(fields), "it says not where it appeared"


def test_no_file_names_a_folder_of_one_machine() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "parts", [("", "home", "a", "b"), ("", "work", "main"), ("--out=", "tmp", "v"), ("C:", "runs")]
)
def test_the_search_finds_machine_paths(parts: tuple[str, ...]) -> None:
    separator = "\\" if parts[0] == "C:" else "/"
    assert MACHINE_PATH.search(f"see {separator.join(parts)}")


@pytest.mark.parametrize("text", ["https://example.org/home/x", "../shared/work/x", "runs/tmp/x", "~/work/x", "a/b"])
def test_the_search_passes_relative_paths_and_urls(text: str) -> None:
    assert not MACHINE_PATH.search(text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert too_long(path.read_text(encoding="utf-8")) == []


def test_what_is_too_long_is_found_and_a_reason_excuses_it() -> None:
    body = "\n".join(["    x = 1"] * LONGEST_FUNCTION)
    assert too_long(f"def f():\n{body}\n") == ["f has 61 lines, more than 60"]
    assert too_long(f"def f():\n    # why: one table\n{body}\n") == []
    assert too_long(f"def f():\n    # a remark\n    # why: one table\n{body}\n") == ["f has 63 lines, more than 60"]
    assert too_long("x = 1\n" * LONGEST_FILE) == []
    assert too_long("x = 1\n" * (LONGEST_FILE + 1)) == ["the file has 401 lines, more than 400"]
    assert too_long("# why: one table\n" + "x = 1\n" * LONGEST_FILE) == []
