"""The gallery: what every picture keeps to, the numbers in pictures, and the command."""

import csv
import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import pytest
from environments import run
from scipy import stats

from natgrad import cli
from natgrad.theory import gallery
from natgrad.theory.gallery import decisions

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
    page = (written / "index.html").read_text(encoding="utf-8")
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


def test_the_table_of_ideas_names_pictures_and_tests_that_exist():
    root = Path(__file__).parents[1]
    table = (root / "docs" / "gallery.md").read_text()
    rows = [
        line.split("|")[1:-1] for line in table.splitlines() if re.match(r"\|( \d+)? +\|", line)
    ]
    assert [int(row[0]) for row in rows if row[0].strip()] == list(range(1, 27))
    shown = re.findall(r"`([^`]+)`", "".join(row[5] for row in rows))
    assert set(shown) == set(PICTURES)
    tests = [path.read_text() for path in (root / "tests").glob("test_*.py")]
    for name in re.findall(r"`(test_[^`]+)`", "".join(row[4] for row in rows)):
        if name.endswith(".py"):
            assert (root / "tests" / name).exists()
        else:
            assert any(f"def {name.removesuffix('...')}" in text for text in tests), name


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


@pytest.mark.parametrize("missing", ["matplotlib", "scipy"])
def test_a_missing_package_is_named_with_the_extra_that_has_it(missing):
    code, _, errors = run(
        "-c",
        f"import sys; sys.modules['{missing}'] = None\n"
        "from natgrad import cli; sys.exit(cli.main(['gallery', 'figure-2', '-o', 'unused']))",
    )
    assert code == 2
    assert re.search(r"natgrad: error: .*pip install 'natgrad\[\w+\]'", errors)


# Numbers in pictures -----------------------------------------------------------------------------


def test_equal_distances_in_parameters_are_very_different_divergences():
    table = data("figure-1")["gaussians"]
    np.testing.assert_allclose(table["distance"][1:], table["distance"][1], rtol=1e-12)
    mu, sigma = table["mu"], table["sigma"]
    closed_form = np.log(sigma) + (1 + mu**2) / (2 * sigma**2) - 0.5  # from N(0, 1)
    np.testing.assert_allclose(table["kl"], closed_form, rtol=1e-12, atol=1e-15)
    assert table["kl"][1:].max() > 20 * table["kl"][1:].min()


def gaussian_steps(natural, size, count, data):
    """Descents of Figure 2 by the closed form of their steps (docs/math.md, eq. 11.9)."""
    m, second = data.mean(), np.mean(data**2)
    mu, sigma = 0.0, 1.0
    path = [(mu, sigma)]
    for _ in range(count):
        around = second - 2 * mu * m + mu**2  # mean of (x - mu)²
        d_mu, d_sigma = (mu - m) / sigma**2, 1 / sigma - around / sigma**3
        if natural:
            d_mu, d_sigma = mu - m, sigma / 2 - around / (2 * sigma)
        mu, sigma = mu - size * len(data) * d_mu, sigma - size * len(data) * d_sigma
        path.append((mu, sigma))
    return np.array(path)


@pytest.mark.parametrize("name", ["gradient", "natural"])
def test_the_iterates_of_figure_2_are_those_of_their_closed_form(name):
    table = data("figure-2")[name]
    samples = np.random.default_rng(1).normal(12, 4, size=1000)
    count = len(table["mu"]) - 1
    assert count == 1000 or table["excess"][-1] < 1e-10  # it converges before
    path = gaussian_steps(name == "natural", 1e-4, count, samples)
    np.testing.assert_allclose(np.stack([table["mu"], table["sigma"]], axis=1), path, rtol=1e-9)
    losses = [-stats.norm(*theta).logpdf(samples).sum() for theta in path[:5]]
    np.testing.assert_allclose(table["loss"][:5], losses, rtol=1e-12)


def test_figure_2_shows_what_its_caption_says():
    gradient, natural = data("figure-2")["gradient"], data("figure-2")["natural"]
    assert gradient["sigma"][1] > 1.5 * natural["sigma"][1] > 3 * 4  # both jump away, one further
    assert np.abs(natural["mu"][200] - 12) < 0.5
    assert natural["excess"][200] < 1e-6
    assert gradient["excess"][1000] > 100
    steps = np.hypot(np.diff(gradient["mu"]), np.diff(gradient["sigma"]))
    assert steps[1:].max() < 0.01  # a line


def test_figure_3_has_the_gradients_of_the_loss_and_their_growth():
    grid, line = data("figure-3")["grid"], data("figure-3")["toward_zero"]
    samples = np.random.default_rng(1).normal(12, 4, size=1000)
    m, second = samples.mean(), np.mean(samples**2)
    mu, sigma = grid["mu"], grid["sigma"]
    around = second - 2 * mu * m + mu**2
    for name, want in (
        ("gradient_mu", -(mu - m) / sigma**2),
        ("gradient_sigma", around / sigma**3 - 1 / sigma),
        ("natural_mu", -(mu - m)),
        ("natural_sigma", around / (2 * sigma) - sigma / 2),
    ):
        np.testing.assert_allclose(grid[name], want, rtol=1e-9, atol=1e-12)

    def slope(name):
        return np.polyfit(np.log(line["sigma"][:8]), np.log(line[name][:8]), 1)[0]

    assert slope("gradient_length") == pytest.approx(-3, abs=0.02)
    assert slope("natural_length") == pytest.approx(-1, abs=0.02)


def test_steps_of_constant_length_stay_at_their_length_from_the_optimum():
    tables = data("step-lengths")
    for epsilon in (0.1, 0.01, 0.001):
        last = tables[f"epsilon_{epsilon:g}"]["distance"][-20:]
        assert 0.4 < last.max() / np.sqrt(2 * epsilon) < 1.3
        assert len(tables[f"epsilon_{epsilon:g}"]["mu"]) < 500  # stopped as a cycle
    decaying = tables["decaying"]["distance"]
    assert len(decaying) == 1001
    assert decaying[-20:].max() < 0.1 * tables["epsilon_0.1"]["distance"][-20:].max()
    assert tables["searched"]["distance"][-1] < 1e-6


def test_the_softmax_saturates_and_stays_finite():
    fisher, paths = data("softmax")["fisher"], data("softmax")["paths"]
    theta = fisher["theta"]
    small = np.abs(theta) < 700
    want = np.exp(-np.abs(theta[small])) / (1 + np.exp(-np.abs(theta[small]))) ** 2
    np.testing.assert_allclose(fisher["fisher"][small], want, rtol=1e-12)
    assert theta.max() == 800  # exp(800) overflows
    assert fisher["fisher"][-1] == 0

    t = paths["iteration"]
    np.testing.assert_allclose(paths["normalised"], 0.5 * t, rtol=1e-6)  # constant speed
    np.testing.assert_allclose(paths["natural"], 0.5 * t, rtol=1e-6)  # F^-1 grad p = 1
    x, gradient = 0.0, []
    for _ in t:
        gradient.append(x)
        x += 0.5 * np.exp(-x) / (1 + np.exp(-x)) ** 2
    np.testing.assert_allclose(paths["gradient"], gradient, rtol=1e-9)
    speed = np.diff(paths["trust_region"])
    assert np.all(np.diff(speed[:10]) > 0)  # faster and faster
    np.testing.assert_allclose(  # as sqrt(2 epsilon / F)
        speed[:9], np.sqrt(0.04) * 2 * np.cosh(paths["trust_region"][:9] / 2), rtol=1e-6
    )


def test_natural_steps_in_polar_coordinates_go_where_gradients_of_the_plane_go():
    tables = data("polar")
    gap = tables["gap"]
    slope = np.polyfit(np.log(gap["step"]), np.log(gap["natural"]), 1)[0]
    assert slope == pytest.approx(1, abs=0.05)
    assert gap["plain"].min() > 0.9
    t = tables["cartesian"]["iteration"]
    start = 3 * np.array([np.cos(2.4), np.sin(2.4)])
    straight = 1 + (start[0] - 1) * 0.92**t, 0.5 + (start[1] - 0.5) * 0.92**t
    np.testing.assert_allclose(tables["cartesian"]["x"], straight[0], rtol=1e-10)
    np.testing.assert_allclose(tables["cartesian"]["y"], straight[1], rtol=1e-10)


def test_natural_steps_map_onto_each_other_and_gradients_do_not():
    tables = data("invariance-linear")
    assert tables["natural"]["gap"].max() < 1e-10
    assert tables["gradient"]["gap"].max() > 1
    first = {
        name: np.array([tables["gradient"][f"{name}{x}"][1] for x in ("mu", "sigma")])
        for name in ("", "mapped_")
    }
    A = np.array([[2.0, 0.5], [-0.8, 1.0]])
    begin = np.array([3.0, 7.0])
    np.testing.assert_allclose(first["mapped_"] - begin, A @ A.T @ (first[""] - begin), rtol=1e-10)


def test_half_a_step_is_a_quarter_of_the_gap_of_nonlinear_coordinates():
    gap = data("invariance-nonlinear")["gap"]
    ratios = gap["natural"][:-1] / gap["natural"][1:]
    np.testing.assert_allclose(ratios[2:], 4, rtol=0.03)
    np.testing.assert_allclose(gap["gradient"][4:-1] / gap["gradient"][5:], 2, rtol=0.05)


def test_damping_that_is_carried_along_keeps_steps_the_same():
    gap, undamped = data("invariance-damping")["gap"], data("invariance-damping")["undamped"]
    usual = (gap["damping"] >= 1e-3 * 0.99) & (gap["damping"] <= 0.1 * 1.01)
    assert 0.03 < gap["identity"][usual].min() < gap["identity"][usual].max() < 0.12
    assert gap["identity"][-1] > 0.2
    assert gap["carried"].max() < 1e-10
    assert gap["ten_products"].min() > 1e-3
    assert undamped["gap"][0] < 100 * np.finfo(float).eps * undamped["condition"][0]


def test_the_empirical_fisher_matrix_needs_the_models_own_samples():
    error = data("empirical-fisher")["error"]
    slope = np.polyfit(np.log(error["n"]), np.log(error["own"]), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)
    assert error["own"][-1] < 0.03
    assert error["others"].min() > 1
    grid = data("empirical-fisher")["grid"]
    near_zero = grid["sigma"] == 1
    true, empirical = (
        np.hypot(grid[f"{name}_mu"], grid[f"{name}_sigma"]) for name in ("true", "empirical")
    )
    assert true[near_zero].min() > true[grid["sigma"] == 4].min()
    assert empirical[near_zero].max() < 0.1 * true[near_zero].min()


def test_figure_4_has_its_closed_form_and_its_order():
    tables = data("figure-4")
    for method in ("gradient", "natural", "trust-region"):
        assert tables[method]["mean"][0] == pytest.approx(-(385 - 100 + 10) * 100 - 55 * 196)
    gradient, natural, within = (tables[m]["mean"] for m in ("gradient", "natural", "trust-region"))
    assert natural[40] > -200
    assert within[40] > -200
    assert gradient[40] < -30_000
    assert gradient[-1] > gradient[0]  # it learns, too
    assert tables["parameters"]["gradient-sigma"][-1] > 10  # but not to be certain
    agents = np.array([tables["natural"][f"agent{i}"] for i in range(10)])
    np.testing.assert_allclose(agents.mean(axis=0), natural)
    assert len({agent[5] for agent in agents}) == 10


def test_figure_4_cannot_be_had_with_raw_returns():
    first = [
        decisions.line_agent("natural", seed, updates=1, standardized=False)[1, 0]
        for seed in range(decisions.AGENTS)
    ]
    assert np.median(np.abs(first)) > 5e4
    assert np.abs(first).min() > 100


def test_the_plateau_is_there_and_as_long_as_predicted():
    begin = np.log(decisions.STAY / (1 - decisions.STAY))
    K = decisions.plateau_constant(begin)
    np.testing.assert_allclose(K, np.log(4) - 1 - np.log(9) + 18)
    gradient, natural = (data("plateau")[name] for name in ("gradient", "natural"))
    time, reward = gradient["time"], gradient["reward"]
    assert time[-1] == pytest.approx(np.exp(K) / 4, rel=1e-3)
    assert time[-1] == pytest.approx(2.684e6, rel=1e-3)
    flat = (reward > 0.99) & (reward < 1.01)
    assert time[flat][-1] - time[flat][0] > 0.999 * time[-1]
    assert gradient["second"].min() == pytest.approx(1.297e-6, rel=1e-2)
    thetas = np.stack([gradient["theta1"], gradient["theta2"]], axis=1)
    kept = [decisions.plateau_constant(theta) for theta in thetas]
    np.testing.assert_allclose(kept, K, rtol=1e-5)
    assert natural["time"][-1] == pytest.approx(2.55, rel=1e-2)
    assert natural["second"].min() > 0.058
    # As the caption says of another start.
    nearby = np.array([0.8, 0.09])
    longer = np.exp(decisions.plateau_constant(np.log(nearby / (1 - nearby))) - K)
    assert longer == pytest.approx(8, rel=0.05)


def test_natural_steps_are_the_same_at_three_scales_and_gradient_steps_are_not():
    natural, plain = (
        [decisions.system_steps(scale, which, steps=300) for scale in decisions.SCALES]
        for which in (True, False)
    )
    for path in natural[1:]:
        np.testing.assert_allclose(path, natural[0], rtol=1e-10)
    for path in plain[1:]:
        assert np.linalg.norm(path - plain[0]) > 0.1 * np.linalg.norm(plain[0] - plain[0][0])
    tables = data("linear-quadratic")
    hits = {name: table["step"][np.argmax(table["cost"] < 22)] for name, table in tables.items()}
    assert hits["natural-1-1"] == hits["natural-10-1"] == hits["natural-1-10"]
    for name in ("gradient-1-1", "gradient-10-1", "gradient-1-10"):
        cost = tables[name]["cost"]
        assert cost.min() > 22 or hits[name] > 17 * hits["natural-1-1"]
        assert cost[-1] > tables["natural-1-1"]["cost"][-1] + 1


def test_the_policy_of_the_linear_system_has_the_jacobian_of_finite_differences():
    x, h = np.array([-0.9, -0.4]), 1e-6
    jacobian = decisions.gain_and_std(x)[2]
    for i in range(2):
        up, down = (decisions.gain_and_std(x + s * h * np.eye(2)[i])[:2] for s in (1, -1))
        np.testing.assert_allclose(jacobian[:, i], np.subtract(up, down) / (2 * h), rtol=1e-6)


def test_bounds_lie_below_the_return_and_its_maximiser_where_the_picture_says():
    for name in ("near", "far"):
        table = data("minorise-maximise")[name]
        assert (table["bound"] <= table["return"] + 1e-12).all()
        assert (table["mean_bound"] <= table["return"] + 1e-12).all()
        touch = np.argmin(np.abs(table["step"]))
        for column in ("return", "surrogate", "bound", "mean_bound"):
            assert table[column][touch] == pytest.approx(table["return"][touch])
    near = data("minorise-maximise")["near"]
    assert near["step"][near["bound"].argmax()] == pytest.approx(1)
    iterations = data("minorise-maximise")["iterations"]
    assert (np.diff(iterations["minorise_maximise"]) >= 0).all()
    slow, quick = (
        np.argmax(iterations[name] > 17) for name in ("minorise_maximise", "trust_region")
    )
    assert 15 < slow / quick < 30
    assert iterations["trust_region"][-1] == pytest.approx(18, abs=1e-3)


def test_divergences_of_trajectories_grow_with_the_horizon_and_shrink_with_the_third_power():
    horizons, lengths = (data("trajectories")[name] for name in ("horizons", "lengths"))
    assert horizons["trajectory"][-1] > 20 * horizons["trajectory"][0]
    settled = horizons["per_decision"]
    assert abs(settled[-1] - settled[-10]) < 0.01 * settled[-1]
    short = lengths["length"] < 1e-2
    for name, power in (("old_new", 2), ("new_old", 2), ("half_quadratic", 2), ("difference", 3)):
        slope = np.polyfit(np.log(lengths["length"][short]), np.log(lengths[name][short]), 1)[0]
        assert slope == pytest.approx(power, abs=0.05)
    np.testing.assert_allclose(
        lengths["old_new"][short], lengths["half_quadratic"][short], rtol=0.02
    )
