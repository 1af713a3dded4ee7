"""Settings by environment: sound, taken by default, overridden option by option."""

import shlex

import gymnasium
import pytest

import natgrad
from natgrad.agents import presets
from natgrad.cli import _argument, _parser, main

NAME = "HalfCheetah-v5"


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_names_an_environment_and_options_that_differ_from_the_defaults(name):
    assert name in gymnasium.registry
    assert presets.steps(name) > 0
    options = presets.options(name, natgrad.agents.TRPOConfig)
    config, defaults = natgrad.agents.TRPOConfig(**options), natgrad.agents.TRPOConfig()
    for option in options:
        assert getattr(config, option) != getattr(defaults, option), option


def test_every_entry_is_the_length_or_an_option():
    for name in presets.names():
        options = presets.options(name, natgrad.agents.TRPOConfig)
        assert len(presets._table()[name]) == len(options) + 1, name


def test_an_agent_takes_the_preset_and_what_is_given_goes_before_it():
    options = presets.options(NAME, natgrad.agents.TRPOConfig)
    assert options["max_kl"] != 0.5
    assert natgrad.TRPO(NAME).config == natgrad.agents.TRPOConfig(**options)
    given = natgrad.TRPO(NAME, max_kl=0.5, seed=3).config
    assert given == natgrad.agents.TRPOConfig(**{**options, "max_kl": 0.5, "seed": 3})
    assert natgrad.TRPO(NAME, natgrad.agents.TRPOConfig()).config == natgrad.agents.TRPOConfig()


def test_npg_takes_what_it_knows_and_reinforce_nothing():
    options = presets.options(NAME, natgrad.agents.NPGConfig)
    assert natgrad.NPG(NAME).config == natgrad.agents.NPGConfig(**options)
    assert natgrad.REINFORCE(NAME).config == natgrad.agents.REINFORCEConfig()


def test_an_environment_without_a_preset_has_the_defaults():
    assert "FrozenLake-v1" not in presets.names()
    assert natgrad.TRPO("FrozenLake-v1").config == natgrad.agents.TRPOConfig()
    assert presets.steps("FrozenLake-v1") is None


def test_the_command_prints_options_that_train_takes(capsys):
    assert main(["presets", NAME]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{NAME}  --steps {presets.steps(NAME)}"
    read = vars(_parser().parse_args(["train", NAME, *shlex.split(" ".join(rest))]))
    for option, value in presets.options(NAME, natgrad.agents.TRPOConfig).items():
        assert read[option] == value
    assert all(len(line) <= 80 for line in rest)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_kl", 0.03),
        ("preconditioner", "kfac"),
        ("normalize_observations", False),
        ("damping", 0.3),
        ("damping", "AdaptiveDamping(0.1, low=1e-4)"),
        ("line_search", natgrad.LineSearch(0.5)),
        ("hidden", (32, 16)),
        ("hidden", ()),
        ("env_options", {"gravity": 5.0}),
    ],
)
def test_train_reads_an_option_as_presets_prints_it(option, value):
    words = shlex.split(_argument(option, value))
    given = vars(_parser().parse_args(["train", NAME, *words]))[option]
    read, want = (natgrad.agents.TRPOConfig(**{option: x}) for x in (given, value))
    assert read == want


def test_the_command_lists_all(capsys):
    assert main(["presets"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert listed == presets.names()


def test_an_unknown_name_is_an_error_with_those_that_there_are(capsys):
    assert main(["presets", "Nowhere-v0"]) == 2
    error = capsys.readouterr().err
    assert "no preset for 'Nowhere-v0'" in error
    assert NAME in error


@pytest.mark.parametrize("flags", [[], ["--no-preset"]])
def test_train_takes_the_preset_unless_told_not_to(tmp_path, capsys, flags):
    command = ["train", NAME, "--steps", "64", "--batch-size", "64", "--run-dir", str(tmp_path)]
    assert main([*command, *flags]) == 0
    config = natgrad.TRPO.load(tmp_path).config
    options = {} if flags else presets.options(NAME, natgrad.agents.TRPOConfig)
    assert config == natgrad.agents.TRPOConfig(**{**options, "batch_size": 64})
