"""Equations and links of the documents: numbers without gaps, and nothing that leads nowhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MATH = ROOT / "docs" / "math.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"])
SOURCES = [
    path
    for folder in ("cpp", "bindings", "python", "tests", "benchmarks", "tools", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".hpp", ".cpp", ".py", ".pyi", ".md", ".toml"}
]

# A citation names one equation, several, or a range of them. It may go on in the next line of a
# comment. Old numbers are matched as well, so that they are found to be wrong.
_BREAK = r"[ \t]*\n?[ \t]*(?://+|#|\*)?[ \t]*"
_NUMBER = r"\d+(?:\.\d+)?"
_CITATION = re.compile(
    rf"\beqs?\.{_BREAK}({_NUMBER}(?:(?:,{_BREAK}|{_BREAK}(?:and|to){_BREAK}){_NUMBER})*)"
)


def equations() -> list[str]:
    """The numbers of all equations of docs/math.md, as they stand in it."""
    return re.findall(r"\\tag\{([^}]*)\}", MATH.read_text()) + re.findall(
        r"^\|.*\| \(([\d.]+)\) \|$", MATH.read_text(), re.MULTILINE
    )


def test_equations_are_numbered_by_section_in_order_without_gaps():
    section, sections, following = None, 0, 1
    for line in MATH.read_text().splitlines():
        if line.startswith("## "):
            heading = re.match(r"## (\d+)\. ", line)
            section, following = heading and int(heading[1]), 1
            if section is not None:
                sections += 1
                assert section == sections, line
        for number in re.findall(r"\\tag\{([^}]*)\}|^\|.*\| \(([\d.]+)\) \|$", line):
            assert "".join(number) == f"{section}.{following}", line
            following += 1
    assert sections > 10


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_cited_equation_exists(path):
    text = path.read_text(encoding="utf-8")
    cited = [n for found in _CITATION.findall(text) for n in re.findall(_NUMBER, found)]
    if path == MATH:  # there, parentheses in the text cite as well
        prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", "", text, flags=re.DOTALL)
        for found in re.findall(r"\((\d+\.\d+(?:(?:, | to )\d+\.\d+)*)\)", prose):
            cited += re.findall(_NUMBER, found)
    known = set(equations())
    assert not [number for number in cited if number not in known]


def test_citations_are_found():
    text = "(eq. 4.1, 4.2) // see eq.\n  // 5.1 to 5.3; Schulman et al. 2015, equation 9"
    assert _CITATION.findall(text) == ["4.1, 4.2", "5.1 to 5.3"]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, target
