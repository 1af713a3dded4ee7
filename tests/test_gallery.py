"""The gallery: what every picture keeps to, the numbers in pictures, and the command."""

import csv
import dataclasses
import functools

import numpy as np
import pytest

from natgrad import cli, gallery

PICTURES = gallery.pictures()


@functools.cache
def data(name):
    return PICTURES[name].data()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the whole gallery."""
    folder = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        kept = {  # each is computed once for all tests
            name: dataclasses.replace(picture, data=functools.partial(data, name))
            for name, picture in PICTURES.items()
        }
        patch.setattr(gallery, "pictures", lambda: kept)
        assert gallery.write(output=folder, progress=False) == folder / "index.html"
    return folder


# What every picture keeps to ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_a_file_with_its_data_beside_it(written, name):
    assert (written / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    tables = data(name)
    assert tables
    for table, columns in tables.items():
        with (written / f"{name}-{table}.csv").open() as file:
            first, *rows = csv.reader(file)
        assert first == list(columns)
        for i, column in enumerate(columns.values()):
            assert len(rows) == len(column) > 0
            if np.issubdtype(column.dtype, np.floating):
                assert np.isfinite(column).all()
                np.testing.assert_array_equal([float(row[i]) for row in rows], column)


@pytest.mark.parametrize("name", PICTURES)
def test_the_page_shows_a_picture_with_its_caption_and_links_its_data(written, name):
    page = (written / "index.html").read_text()
    section = page[page.index(f'<section id="{name}">') :]
    section = section[: section.index("</section>")]
    for text in (f'src="{name}.png"', "What to see", "Settings", "Source"):
        assert text in section
    for table in data(name):
        assert f'href="{name}-{table}.csv"' in section
    assert ("Where it departs" in section) == bool(PICTURES[name].deviation)


def test_data_are_the_same_each_time():
    again = PICTURES["figure-1"].data()
    for table, columns in data("figure-1").items():
        for name, column in columns.items():
            np.testing.assert_array_equal(column, again[table][name])


def test_the_command_draws_what_is_asked_for(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert cli.main(["gallery", "figure-1", "--output", str(folder), "--no-progress"]) == 0
    assert capsys.readouterr() == (f"{folder}/index.html\n", "")
    assert [path.name for path in folder.glob("*.png")] == ["figure-1.png"]
    assert (folder / "index.html").read_text().count("<section") == 1


def test_the_command_lists_names_and_shows_progress(tmp_path, capsys):
    assert cli.main(["gallery", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PICTURES)
    assert cli.main(["gallery", "figure-1", "-o", str(tmp_path), "--progress"]) == 0
    assert "1/1" in capsys.readouterr().err


def test_what_is_wrong_is_said_in_a_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    for arguments, words in (
        (["nonsense"], "no picture is called 'nonsense'; wanted one of figure-1"),
        (["figure-1", "-o", str(tmp_path / "file")], f"cannot write to '{tmp_path}/file'"),
    ):
        assert cli.main(["gallery", *arguments]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert words in errors


# Numbers in pictures -----------------------------------------------------------------------------


def test_equal_distances_in_parameters_are_very_different_divergences():
    table = data("figure-1")["gaussians"]
    np.testing.assert_allclose(table["distance"][1:], table["distance"][1], rtol=1e-12)
    mu, sigma = table["mu"], table["sigma"]
    closed_form = np.log(sigma) + (1 + mu**2) / (2 * sigma**2) - 0.5  # from N(0, 1)
    np.testing.assert_allclose(table["kl"], closed_form, rtol=1e-12, atol=1e-15)
    assert table["kl"][1:].max() > 20 * table["kl"][1:].min()
