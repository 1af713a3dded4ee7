"""`natgrad bench` and benchmarks/: what they print and write, and that they time nothing wrong."""

import csv
import importlib
import importlib.util
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from environments import run

from natgrad import _core, bench, cli
from natgrad.bench import PIECES, SHAPES, Problem, Shape

ROOT = Path(__file__).parents[1]
peers = bench.peers(ROOT)
harness = importlib.import_module("benchmarks.harness")
SCRIPTS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "benchmarks").glob("*/*.py"))
    if path.stem not in ("__init__", "test_pieces")
]

TINY = [
    Shape("tiny", 3, (5, 4), _core.DiagonalGaussian(2), 64),
    Shape("classes", 3, (6,), _core.Categorical(3), 64),
    Shape("linear", 3, (), _core.DiagonalGaussian(2), 64),
]
NUMBER = r"\d+(\.\d+)?"


def command(*arguments, timeout=60):
    return run("-m", "natgrad.cli", "bench", *arguments, timeout=timeout, cwd=ROOT)


# The peak --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_peak_is_a_rate_of_this_century(dtype):
    assert 1 < max(_core.fma_peak(dtype) for _ in range(10)) < 1e5


def test_float32_doubles_the_peak():
    with bench.using_threads(1):
        ratios = [_core.fma_peak("float32") / _core.fma_peak("float64") for _ in range(51)]
    assert 1.5 < np.median(ratios) < 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, r"dtype: want 'float32' or 'float64', got 'float16'"),
        ({"seconds": 0.0}, r"seconds: want more than 0"),
        ({"seconds": float("nan")}, r"seconds: want more than 0"),
    ],
)
def test_a_wrong_argument_of_the_peak_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.fma_peak(**arguments)


# Problems and operations -----------------------------------------------------------------------


def test_operations_are_those_of_the_matrix_products():
    shape = Shape("", 3, (5, 4), _core.DiagonalGaussian(2), 10)
    first, others = 2 * 10 * 4 * 5, 2 * 10 * (6 * 4 + 5 * 2)
    assert shape.operations(1, 1) == first + others
    assert shape.operations(2, 4) == 2 * first + 4 * others
    gradient = 2 * first + 3 * others
    products = 10 * (2 * first + 4 * others)
    assert shape.update_operations(10, 2) == gradient + products + 2 * (first + others)


@pytest.mark.parametrize("shape", [*TINY, SHAPES["S1"], SHAPES["S2"]], ids=lambda s: s.name)
def test_the_update_that_is_timed_evaluates_two_candidates(shape):
    problem = Problem(shape)
    assert problem.report.accepted
    assert problem.report.backtracks == 1
    assert problem.report.cg.iterations == (10 if problem.report.solver == "cg" else 0)
    np.testing.assert_array_equal(problem.policy.parameters, problem.start)


# Pieces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_piece_of_every_kind_of_problem_is_timed(capsys, dtype):
    rows = bench.bench(TINY, dtype=dtype, threads=1, seconds=0.0)
    assert [(r["shape"], r["piece"]) for r in rows] == [(s.name, p) for s in TINY for p in PIECES]
    for row in rows:
        assert 0 < row["seconds_10"] <= row["seconds"] <= row["seconds_90"]
        assert (row["gflops"] is None) == (row["piece"] == "gae")
        if row["gflops"] is not None:
            assert 0 < row["of_peak_10"] <= row["of_peak"] <= row["of_peak_90"]
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    for shape in TINY:
        assert re.search(rf"^{shape.name}: 3-", printed, re.MULTILINE) or not shape.hidden
    for name in PIECES:
        assert len(re.findall(rf"^{name} +{NUMBER} [mun]?s ", printed, re.MULTILINE)) == len(TINY)


@pytest.mark.parametrize("name", [p for p in PIECES if p not in ("gae", "critic")])
def test_a_wrong_answer_is_not_timed(monkeypatch, name):
    problem = Problem(TINY[0])
    outputs, tangents = problem.reference.outputs, problem.reference.product
    monkeypatch.setattr(problem.reference, "outputs", 1.3 * outputs)
    monkeypatch.setattr(problem.reference, "product", lambda v: 1.3 * tangents(v))
    with pytest.raises(bench.WrongAnswerError, match=r"not timed"):
        PIECES[name](problem)


def test_the_number_of_threads_is_restored():
    before = _core.get_num_threads()
    bench.bench(TINY[:1], ["product"], threads=3, seconds=0.0)
    assert _core.get_num_threads() == before


def test_rounds_that_another_process_disturbs_are_dropped_as_long_as_enough_remain():
    rounds = [(1, True), (2, False), (3, True)]
    assert bench.undisturbed(rounds, 2) == [1, 3]
    assert bench.undisturbed(rounds, 3) == [1, 2, 3]


# The command -----------------------------------------------------------------------------------


def test_the_command_prints_machine_and_table_and_writes_both_files(tmp_path):
    files = {"--json": tmp_path / "rows.json", "--output": tmp_path / "rows.csv"}
    options = ["--shape", "S1", "--piece", "product", "sample-1", "--threads", "1"]
    code, output, errors = command(
        *options, "--seconds", 0.01, *(x for pair in files.items() for x in pair)
    )
    assert (code, errors) == (0, "")
    assert re.search(
        r"^natgrad \S+ \(ISA level \w+\), 1 thread, float32, on .+ cores$", output, re.M
    )
    assert re.search(rf"^FMA peak {NUMBER} GFLOP/s measured", output, re.MULTILINE)
    assert re.search(rf"^product +{NUMBER} [mu]s .* \d+\.\d+ +\d+\.\d+ - ", output, re.MULTILINE)
    saved = json.loads(files["--json"].read_text())
    assert saved["machine"]["threads"] == 1
    assert [row["piece"] for row in saved["rows"]] == ["product", "sample-1"]
    with files["--output"].open() as file:
        table = list(csv.DictReader(file))
    assert [row["piece"] for row in table] == ["product", "sample-1"]
    assert float(table[0]["seconds"]) == saved["rows"][0]["seconds"]
    assert table[0]["isa"] == saved["machine"]["isa"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "S9"], r"--shape S9: want one of S1, S2"),
        (["--piece", "nothing"], r"--piece nothing: want one of forward, gradient"),
        (["peers", "--peer", "nobody"], r"--peer nobody: want one of jax, sb3-contrib, tianshou"),
        (["peers", "--piece", "cg"], r"--piece is no option of `natgrad bench peers`"),
        (["peers", "--dtype", "float64"], r"--dtype is no option of `natgrad bench peers`"),
        (["--peer", "jax"], r"--peer is no option of `natgrad bench pieces`"),
        (
            ["--shape", "S1", "--piece", "gae", "--seconds", "0", "--json", "/nowhere/file"],
            r"cannot write '/nowhere/file'",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys, arguments, message):
    assert cli.main(["bench", *arguments]) == 2
    errors = capsys.readouterr().err
    assert re.search(message, errors)
    assert errors.count("\n") == 1


# Peers -----------------------------------------------------------------------------------------


def sleeper(name, seconds):
    """A peer whose update takes so long."""
    import time

    return peers.Peer(
        name, "", lambda: time.sleep(seconds), lambda: None, lambda: np.zeros(1), lambda v: v
    )


@pytest.mark.alone
def test_ratios_compare_the_same_round(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    monkeypatch.setattr(peers, "WARM", 0.0)
    monkeypatch.setattr(peers, "TURN", 0.02)
    turns = peers.take_turns([sleeper("natgrad", 0.005), sleeper("other", 0.015)], 0.0)
    assert len(turns["natgrad"]) == len(turns["other"]) >= 3
    ratios = harness.ratios(turns["other"], turns["natgrad"])
    assert ratios == [b / a for a, b in zip(turns["natgrad"], turns["other"], strict=True)]
    assert 1.5 < np.median(ratios) < 6


def test_libraries_that_are_missing_are_named_with_the_command_that_installs_them():
    absent = [name for name, spec in peers.PEERS.items() if not importlib.util.find_spec(spec[0])]
    code, output, errors = command(
        "peers", "--shape", "S1", "--seconds", 0, "--threads", 1, timeout=240
    )
    assert (code, errors) == (0, "")
    for name in peers.PEERS:
        assert (f"not installed: {name} (pip install " in output) == (name in absent)
        assert bool(re.search(rf"^{name} +{NUMBER} ", output, re.MULTILINE)) == (name not in absent)
    assert re.search(rf"^natgrad +{NUMBER} ms ", output, re.MULTILINE)


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch, name):
    problem = Problem(TINY[0])
    step = np.array(problem.step)
    wrong = peers.Peer(
        name, "", lambda: None, lambda: None, lambda: 1.1 * step, lambda v: v, damped=False
    )
    monkeypatch.setitem(peers.PEERS, name, ("numpy", "numpy", lambda *_: iter([wrong])))
    with pytest.raises(bench.WrongAnswerError, match=rf"{name}: step: relative error 1\.0e-01"):
        peers.contenders(problem, 1, [name])


def test_ways_to_write_it_in_jax_cut_the_batch_evenly():
    for rows, threads in ((2048, 1), (25_000, 2), (5000, 2), (2048, 2)):
        variants = list(peers.jax_peer.variants(rows, threads))
        assert all(rows % v.chunks == 0 and v.chunks % v.devices == 0 for v in variants)
        assert {v.columns for v in variants} == {False, True}
        assert {v.devices for v in variants} == {1, threads}
        assert len(set(map(str, variants))) == len(variants)


def test_a_checkout_is_known_by_its_project_and_its_peers(tmp_path):
    (tmp_path / "benchmarks" / "peers").mkdir(parents=True)
    wanted = r"clone natgrad's repository and run `natgrad bench peers` inside"
    with pytest.raises(ImportError, match=wanted):
        bench.peers(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    with pytest.raises(ImportError, match=wanted):
        bench.peers(tmp_path)
    assert bench.peers(ROOT / "docs" / "images") is peers


def test_peers_outside_of_a_checkout_say_where_they_are(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "natgrad" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "peers"]) == 2
    errors = capsys.readouterr().err
    assert "the programs of the peers are not part of the installed package: clone" in errors
    assert errors.count("\n") == 1


# The harness of benchmarks/ --------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_loads_or_says_what_to_install(name):
    message = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the hosts, about themselves
        try:
            importlib.import_module(name)
        except SystemExit as error:
            message = str(error)
    assert re.fullmatch(r"(\w+ is not installed: pip install 'natgrad\[\w+(,\w+)*\]')?", message)


def test_documents_name_benchmarks_that_exist():
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"]
    names = {
        name
        for path in documents
        for name in re.findall(r"python -m (benchmarks[.\w]+)|\b((?:benchmarks|tools)/[/\w]+\.py)",
                               path.read_text())
    }  # fmt: skip
    found = {module.replace(".", "/") + ".py" if module else file for module, file in names}
    assert len(found) > 20
    assert [name for name in sorted(found) if not (ROOT / name).exists()] == []


def test_quick_changes_defaults_and_no_option_that_is_given(capsys):
    def options(*arguments):
        parser = harness.parser("What it does.\n\n  In two lines.", rounds=9, dtype="float32")
        parser.add_argument("--task", nargs="+", default=["a", "b"], help="what to learn")
        return harness.parse(parser, {"rounds": 1, "task": ["a"]}, arguments)

    assert (options().rounds, options().task) == (9, ["a", "b"])
    assert (options("--quick").rounds, options("--quick").task) == (1, ["a"])
    assert options("--quick", "--rounds", "2").rounds == 2
    with pytest.raises(SystemExit):
        options("--help")
    text = capsys.readouterr().out
    assert "  In two lines." in text
    assert "what to learn (default: a b)" in text


def double(job):
    return [{"name": job[0], "seed": job[1], "value": 2 * job[1]}]


@pytest.mark.parametrize("processes", [None, 1])
def test_a_study_resumes_where_it_stopped(tmp_path, processes):
    path = tmp_path / "folder" / "study.csv"
    runs = [("a", 0), ("b", 0), ("a", 1)]
    first = harness.Study(path, ("name", "seed"), ("value",))
    assert first.missing(runs) == runs
    first.run(runs[:2], double, processes)
    second = harness.Study(path, ("name", "seed"), ("value",))
    assert second.missing(runs) == runs[2:]
    second.run(second.missing(runs), double)
    rows = harness.read_rows(path)
    assert sorted((r["name"], r["seed"], r["value"]) for r in rows) == [
        ("a", "0", "0"), ("a", "1", "2"), ("b", "0", "0"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"has the columns name, seed, value; wanted name, value"):
        harness.Study(path, ("name",), ("value",))


def test_a_study_without_a_file_keeps_its_rows_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = harness.Study(None, ("name", "seed"), ("value",))
    study.run([("a", 1)], double)
    assert study.rows == [{"name": "a", "seed": 1, "value": 2}]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks/results").glob("*.csv")), ids=lambda p: p.stem
)
def test_results_are_tables(path):
    rows = harness.read_rows(path)
    assert rows
    assert all(None not in row and None not in row.values() for row in rows)


def test_everybody_has_a_turn_in_each_round():
    calls = []
    turns = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    taken = harness.take_turns(turns, rounds=3, warm=1)
    assert taken == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert "".join(calls) == "abababab"
