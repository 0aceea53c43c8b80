"""The documentation: its links, its English, and its blocks, each of which is checked as far as it can be here."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cli.main import COMMANDS
from pipeline.cli.parser import Parser, build

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(DOCS.rglob("*.md"))
MADE = ("settings.md", "commands.md", "rules.md")  # by scripts/make_reference, from the code
WORDS_OF_A_SENTENCE = 35
LINES_OF_THE_README = 150
PRIVATE = re.compile(  # words of the code's own history that a reader cannot know
    r"\b(intake|take_in|patience|blamed|confined|desks?|journal|further inputs|it is said|are said)\b", re.IGNORECASE
)
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. Its mark is a comment before it: `runs`, `runs after: PAGE`, `cannot run: why`."""

    page: Path
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text.splitlines()[0]}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for found in FENCE.finditer(page.read_text()):
            yield Block(page, found["language"], found["text"], found["mark"] or "")


def anchors(page: Path) -> set[str]:
    """Of its headings, as Markdown's readers make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.relative_to(ROOT)} links to {target}"
            assert not anchor or anchor in anchors(there), f"{page.relative_to(ROOT)} links to {target}"


def test_pages_are_listed() -> None:
    for page in DOCS.rglob("*.md"):
        index = page.parent / "index.md"
        if page != index:
            assert f"]({page.name})" in index.read_text(), f"{index.relative_to(ROOT)} does not list {page.name}"


def sentences(page: Path) -> Iterator[str]:
    """The prose of a page: without blocks and tables, code as one word."""
    text = re.sub(
        r"^\|.*\|$|^#+ .*$|^\$\$.*?\$\$|!?\[[^]]*\]\([^)]*\)$", "", FENCE.sub("\n\n", page.read_text()), flags=re.M
    )
    text = re.sub(r"`[^`]+`|\$[^$\n]+\$|https?://\S+", "code", text)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:- |\d\. |: )", text):
        yield from re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))


def test_english_is_plain() -> None:
    for page in PAGES:
        if page.name not in MADE:
            for sentence in sentences(page):
                n_words = len(sentence.split())
                assert n_words <= WORDS_OF_A_SENTENCE, f"{page.relative_to(ROOT)}: {n_words} words: {sentence}"
    for path in [*PAGES, *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "dlshap_core").rglob("*.py")]:
        assert not (found := PRIVATE.search(path.read_text())), f"{path.relative_to(ROOT)} has {found}"
    assert len((ROOT / "README.md").read_text().splitlines()) <= LINES_OF_THE_README


@pytest.fixture(scope="module")
def reference() -> SimpleNamespace:
    """scripts/make_reference."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "make_reference")))


def test_pages_made_from_the_code_are_current(reference: SimpleNamespace) -> None:
    for name, text in reference.pages().items():
        assert (DOCS / "reference" / name).read_text() == text, f"docs/reference/{name}: run scripts/make_reference"


def known_settings() -> set[str]:
    found = set(re.findall(r"^\| `([\w.]+)` \|", (DOCS / "reference" / "settings.md").read_text(), re.MULTILINE))
    return found | {"model", "dataset", "references", "cluster", "engine", "store", "experiment", "run", "limits"}


def commands_of(text: str) -> Iterator[list[str]]:
    """The command lines of `dlshap` in a block of the shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "dlshap" in words:
            yield words[words.index("dlshap") + 1 :]


def parser_of(words: list[str]) -> Parser:
    root = build(COMMANDS, words[0])
    assert root.commands is not None
    parser = root.commands.choices[words[0]]
    return parser.commands.choices[words[1]] if parser.commands else parser


def test_commands_and_settings_of_the_blocks_are_there() -> None:
    settings = known_settings()
    parsers: dict[tuple[str, ...], Parser] = {}
    for block in blocks():
        if block.language != "bash" or block.mark.startswith("cannot run: the choice"):
            continue
        for words in commands_of(block.text):
            assert words, f"{block.place}: {words}"
            key = tuple(words[: 2 if words[0] == "export" else 1])
            parser = parsers.setdefault(key, parser_of(words))
            for word in words[1:]:
                if word.startswith("-") and word != "-":
                    assert word.partition("=")[0] in parser._option_string_actions, f"{block.place}: {word}"
                elif re.match(r"[a-z_.]+=", word) and words[0] in ("run", "plan", "audit"):
                    name = word.partition("=")[0]
                    is_known = any(name == each or name.startswith(f"{each}.") for each in settings if "." in each)
                    assert is_known or name in settings, f"{block.place}: {name} is no setting"


def test_settings_in_the_text_are_there() -> None:
    settings = known_settings()
    groups = "model|dataset|references|engine|cluster|store|run|limits"
    for page in PAGES:
        for name in re.findall(rf"`'?((?:{groups})\.[a-z_.]+)[`=]", page.read_text()):
            is_known = any(name.rstrip(".") == each or name.startswith(f"{each}.") for each in settings)
            of_the_store = name.startswith(("store.", "dataset.")) and "(" not in name
            assert is_known or of_the_store, f"{page.relative_to(ROOT)}: {name} is no setting"


def test_python_blocks_are_python() -> None:
    for block in blocks():
        if block.language == "python":
            ast.parse(block.text, block.place)


def texts_of_the_code() -> str:
    """The sources with the parts of each text in one piece, what varies in it as …."""
    files = (path for folder in ("pipeline", "dlshap_core") for path in (ROOT / folder).rglob("*.py"))
    text = re.sub(r"""["']\s*\n\s*f?["']""", "", "\n".join(path.read_text() for path in files))
    return re.sub(r"\{[^{}\n]+\}", "…", text)


def test_rules_are_shown_as_they_are() -> None:
    shown = next(block.text for block in blocks() if block.text.startswith("# rules/secants.py"))
    rules = (ROOT / "dlshap_core" / "rules" / "secants.py").read_text()
    for function in re.findall(r"^def .*?(?=^\S(?!ef )|\n\n\n|\Z)", shown, re.MULTILINE | re.DOTALL):
        assert function.strip() in rules


def test_quoted_errors_are_in_the_code() -> None:
    code = texts_of_the_code()
    quoted = re.findall(r"^\| `([^`]+)` \|", (DOCS / "run" / "errors.md").read_text(), re.MULTILINE)
    assert len(quoted) > 15
    for message in quoted:
        assert message.strip("… :") in code, f"docs/run/errors.md quotes {message!r}"


@pytest.mark.slow
def test_blocks_that_can_run_do(tmp_path: Path) -> None:
    """One folder for all pages, one process for the Python of each; the first run's store serves the others."""
    bin_folder = Path(sys.executable).parent
    wanted = [block for block in blocks() if block.mark.startswith("runs")]
    assert len(wanted) >= 8
    for block in (
        each for each in sorted(wanted, key=lambda each: "after: first-run" in each.mark) if each.language == "bash"
    ):
        script = f"set -euo pipefail\nPATH={shlex.quote(str(bin_folder))}:$PATH\n{block.text}"
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block.place}\n{done.stdout}{done.stderr}"
    for page in {block.page for block in wanted if block.language == "python"}:
        text = "".join(block.text for block in wanted if block.page == page and block.language == "python")
        done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page}\n{done.stderr}"
