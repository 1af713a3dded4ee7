"""The ideas behind natural gradients as pictures, each with its numbers.

A module of this package is a group of pictures, listed in `PICTURES`. A picture computes its data
separately from drawing them, so that tests can check the numbers and readers can use them.
"""

import html
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "Table", "Tables", "pictures", "write"]

MODULES = (
    "distributions",
    "descent",
    "reparameterization",
    "decisions",
)  # in the order of the page

Table: TypeAlias = Mapping[str, NDArray[Any]]  # columns of one length by their names
Tables: TypeAlias = Mapping[str, Table]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture, the numbers in it, and what a reader has to know.

    Attributes:
        name: name of its files and on the command line.
        title: heading above it.
        source: the document, and the place in it, that the picture illustrates.
        shows: what the picture shows.
        settings: all settings, so that anyone can reproduce it.
        deviation: how it differs from a document that is incomplete or wrong; empty if it does not.
        data: computes the tables; deterministic.
        draw: draws the tables on an empty matplotlib figure.
        size: width and height in inches.
    """

    name: str
    title: str
    source: str
    shows: str
    settings: str
    deviation: str = ""
    data: Callable[[], Tables]
    draw: Callable[[Tables, "Figure"], None]
    size: tuple[float, float] = (9.0, 4.0)


def pictures() -> dict[str, Picture]:
    """All pictures by their names, in the order of the page.

    Raises:
        ImportError: matplotlib or SciPy is not installed.
    """
    try:
        modules = [importlib.import_module(f"natgrad.theory.gallery.{name}") for name in MODULES]
    except ImportError as error:
        raise ImportError(
            f"the gallery needs matplotlib and SciPy: pip install 'natgrad[gallery]' ({error})"
        ) from error
    return {picture.name: picture for module in modules for picture in module.PICTURES}


def write(
    names: Sequence[str] = (),
    output: str | os.PathLike[str] = "gallery",
    *,
    progress: bool | None = None,
) -> Path:
    """Draws pictures: NAME.png, NAME-TABLE.csv for each of its tables, and a page with all of them.

    Args:
        names: names of pictures; all when empty.
        output: folder, created if it is missing.
        progress: whether to show a bar on stderr; None shows it on a terminal.

    Returns:
        The page, `output`/index.html. It has the pictures of this call only.

    Raises:
        ImportError: matplotlib or SciPy is not installed.
        ValueError: no picture has this name, or the folder cannot be written to.
    """
    known = pictures()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for name in names:
        if name not in known:
            raise ValueError(f"no picture is called {name!r}; wanted one of {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names)] or list(known.values())

    folder = Path(output)
    page = folder / "index.html"
    sections: list[str] = []
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tqdm(chosen, disable=hidden, leave=False, unit="picture") as bar:
            for picture in bar:
                bar.set_postfix_str(picture.name)
                tables = picture.data()
                for name, table in tables.items():
                    write_csv(folder / f"{picture.name}-{name}.csv", table)
                sections.append(_section(picture, list(tables)))
                figure = Figure(figsize=picture.size, layout="constrained")
                FigureCanvasAgg(figure)
                picture.draw(tables, figure)
                figure.savefig(folder / f"{picture.name}.png", dpi=120)
        page.write_text(_page(sections), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write to {str(folder)!r}: {reason}") from error
    return page


def write_csv(path: Path, table: Table) -> None:
    """Writes columns under their names, with as many digits as read back to the same numbers."""
    columns = [np.asarray(column).tolist() for column in table.values()]
    lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([",".join(table), *lines, ""]))


_STYLE = """\
body { max-width: 60em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif; }
img { max-width: 100%; }
section { margin-bottom: 3em; }
dt { font-weight: bold; }
dd { margin: 0 0 .5em 0; }
"""


def _page(sections: Sequence[str]) -> str:
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f"<title>natgrad: gallery</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>",
            "<h1>Natural gradients in pictures</h1>",
            *sections,
            "</body>\n</html>\n",
        ]
    )


def _section(picture: Picture, tables: Sequence[str]) -> str:
    e = html.escape
    files = [e(f"{picture.name}-{table}.csv") for table in tables]
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    entries = [
        ("What to see", e(picture.shows)),
        ("Settings", e(picture.settings)),
        ("Where it departs from its source", e(picture.deviation)),
        ("Source", e(picture.source)),
        ("Data", links),
    ]
    rows = "\n".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in entries if text)
    return (
        f'<section id="{e(picture.name)}">\n<h2>{e(picture.title)}</h2>\n'
        f'<img src="{e(picture.name)}.png" alt="{e(picture.title)}">\n'
        f"<dl>\n{rows}\n</dl>\n</section>"
    )
