"""Checkpoints: what is written is read, and no file can do harm."""

import io
import json
import pickle
import time
import zipfile

import numpy as np
import pytest
from environments import (
    SMALL,
    Counting,
    Discrete,
    Random,
    contents,
    read_checkpoint,
    run,
    with_checksum,
    write_checkpoint,
)

import natgrad
from natgrad.agents import CheckpointError

# Damage ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Path of a sound checkpoint, which tests read only."""
    path = tmp_path_factory.mktemp("sound") / "agent.npz"
    agent = natgrad.TRPO(
        "CartPole-v1", n_envs=1, hidden=(4,), critic_hidden=(4,), batch_size=64, seed=2
    )
    agent.learn(256).save(path)
    assert agent._environments.state.lengths.all()  # an episode is in progress: no empty arrays
    return path


def refused(path, match=None, **keywords):
    """Loading raises a CheckpointError that names the file; returns its message."""
    with pytest.raises(CheckpointError, match=match) as caught:
        natgrad.TRPO.load(path, **keywords)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_that_ends_early_is_refused_at_every_length(sound, tmp_path):
    whole = sound.read_bytes()
    lengths = {0, 1, 3, 4, 21, 22, 100, len(whole) - 1, len(whole) - 22, len(whole) - 23}
    for length in sorted(lengths | set(range(0, len(whole), len(whole) // 97))):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        refused(tmp_path / "cut.npz", "damaged or no checkpoint")


def test_no_bit_can_flip_without_being_noticed_or_being_harmless(sound, tmp_path):
    """Zip readers ignore some bits between the members, such as dates: those are harmless."""
    whole, want = sound.read_bytes(), contents(sound)
    with zipfile.ZipFile(sound) as archive:
        inside = [range(i.header_offset + 200, i.header_offset + i.file_size) for i in
                  archive.infolist() if i.file_size > 300]  # fmt: skip
        directory = archive.start_dir
    rng = np.random.default_rng(0)
    headers = [*range(60), *range(directory, len(whole), 3)]
    caught = 0
    for byte in [*(int(rng.choice(r)) for r in inside for _ in range(20)), *headers]:
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << rng.integers(8)
        (tmp_path / "flipped.npz").write_bytes(damaged)
        try:
            agent = natgrad.TRPO.load(tmp_path / "flipped.npz")
        except CheckpointError:
            caught += 1
        else:
            assert contents(agent) == want
            assert not any(byte in r for r in inside), f"byte {byte}"
    assert caught > 20 * len(inside) + 60


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 1000, b"not a checkpoint", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18],
    ids=["empty", "zeros", "text", "zip magic", "empty zip"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "file.npz").write_bytes(content)
    refused(tmp_path / "file.npz", "wanted a file written by natgrad")


def test_a_missing_file_and_a_folder_without_checkpoints_are_refused(tmp_path):
    refused(tmp_path / "nothing.npz", "No such file")
    refused(tmp_path, "has no sound checkpoint")


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return open, (str(self._path), "w")


def test_a_pickle_is_not_run(sound, tmp_path):
    evil, trace = tmp_path / "evil.npz", tmp_path / "trace"
    payload = pickle.dumps(Malice(trace))
    with zipfile.ZipFile(tmp_path / "members.npz", "w") as archive:
        archive.writestr("metadata.pkl", payload)
    (tmp_path / "bare.npz").write_bytes(payload)
    np.save(tmp_path / "object.npy", np.array([Malice(trace)], dtype=object))
    (tmp_path / "object.npz").write_bytes((tmp_path / "object.npy").read_bytes())
    for name in ("members", "bare", "object"):
        refused(tmp_path / f"{name}.npz")
    metadata, arrays = read_checkpoint(sound)
    objects = np.array([Malice(trace)], dtype=object)
    for name in ("policy/parameters", "extra"):
        write_checkpoint(evil, metadata, {**arrays, name: objects})
        refused(evil)
    with evil.open("wb") as file:
        np.savez(file, metadata=objects, **arrays)
    refused(evil, "object")
    pickle.loads(payload).close()
    assert trace.exists(), "the payload should have been dangerous"
    trace.unlink()
    for path in tmp_path.glob("*.npz"):
        refused(path)
    assert not trace.exists()


@pytest.mark.alone
def test_a_header_that_claims_a_huge_array_allocates_nothing(sound, tmp_path):
    metadata, arrays = read_checkpoint(sound)
    for name in ("policy/parameters", "metadata", "environments/actions"):
        header = io.BytesIO()
        claim = {"descr": "<f4" if name != "metadata" else "|u1", "fortran_order": False}
        np.lib.format.write_array_header_1_0(header, {**claim, "shape": (10**12,)})
        write_checkpoint(tmp_path / "huge.npz", metadata, arrays)
        replace_member(tmp_path / "huge.npz", f"{name}.npy", header.getvalue() + b"\0" * 64)
        started = time.perf_counter()
        refused(tmp_path / "huge.npz")
        assert time.perf_counter() - started < 1


def replace_member(path, name, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, old in members.items():
            archive.writestr(member, content if member == name else old)


def test_options_that_ask_for_more_than_the_file_holds_allocate_nothing(sound, tmp_path):
    metadata, arrays = read_checkpoint(sound)
    for huge in (
        {"hidden": [10**6, 10**6]},
        {"critic_hidden": [10**12]},
        {"n_envs": 10**9, "batch_size": 10**9},
        {"fourier_features": 10**10},
    ):
        changed = {**metadata, "config": {**metadata["config"], **huge}}
        write_checkpoint(tmp_path / "huge.npz", changed, arrays)
        refused(tmp_path / "huge.npz", "more parameters than the file has bytes")


def test_a_compressed_file_is_refused(sound, tmp_path):
    """Or a few bytes could claim to be many."""
    (tmp_path / "bomb.npz").write_bytes(sound.read_bytes())
    replace_member(tmp_path / "bomb.npz", "", b"", zipfile.ZIP_DEFLATED)
    refused(tmp_path / "bomb.npz", "is compressed")


def array_damages(arrays):
    """Label, arrays, and what is said."""
    for name, array in arrays.items():
        rest = {key: value for key, value in arrays.items() if key != name}
        yield f"without {name}", rest, "it lacks"
        wrong = array.astype(np.float16 if array.dtype.kind == "f" else np.int16)
        yield f"{name} of another type", {**rest, name: wrong}, r"float16|int16"
        yield f"{name} longer", {**rest, name: np.concatenate([array, array, array[:1]])}, "wanted"
        yield f"{name} with an axis more", {**rest, name: array[None]}, "wanted"
        if array.itemsize > 1:
            swapped = array.astype(array.dtype.newbyteorder())
            yield f"{name} in big endian", {**rest, name: swapped}, "wanted"
        if array.size:
            changed = array.copy()
            changed.ravel()[-1] = 1 - changed.ravel()[-1]
            yield f"{name} changed", {**rest, name: changed}, "checksum"
        if array.dtype.kind == "f" and array.size:
            for value in (np.nan, np.inf):
                bad = array.copy()
                bad.ravel()[0] = value
                yield f"{name} with {value}", {**rest, name: bad}, "checksum|not finite"
    yield "with an array more", {**arrays, "extra": np.zeros(3)}, "has .*extra.* besides"


def test_every_wrong_array_is_refused(sound, tmp_path):
    metadata, arrays = read_checkpoint(sound)
    labels = []
    for label, damaged, match in array_damages(arrays):
        write_checkpoint(tmp_path / "wrong.npz", metadata, damaged)
        try:
            refused(tmp_path / "wrong.npz", match)
        except BaseException as error:
            raise AssertionError(label) from error
        labels.append(label)
    assert len(labels) > 60


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_even_with_their_checksum(sound, tmp_path, value):
    metadata, arrays = read_checkpoint(sound)
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        bad = {**arrays, name: array.copy()}
        bad[name].ravel()[-1] = value
        write_checkpoint(tmp_path / "bad.npz", with_checksum(metadata, bad), bad)
        refused(tmp_path / "bad.npz", f"{name}' has values that are not finite")


def edited(tree, path, value):
    """A copy of nested dictionaries with one value replaced, or removed if it is ...."""
    tree = dict(tree)
    if len(path) > 1:
        tree[path[0]] = edited(tree[path[0]], path[1:], value)
    elif value is ...:
        del tree[path[0]]
    else:
        tree[path[0]] = value
    return tree


EDITS = [
    (("format_version",), 99),
    (("format_version",), 0),
    (("format_version",), -1),
    (("format_version",), "1"),
    (("format_version",), True),
    (("format_version",), ...),
    (("sha256",), "0" * 64),
    (("sha256",), ...),
    (("algorithm",), "ppo"),
    (("algorithm",), ["trpo"]),
    (("algorithm",), ...),
    (("env_id",), None),
    (("env_id",), 5),
    (("env_id",), "os:CartPole-v1"),
    (("config",), ...),
    (("config",), []),
    (("config", "max_kl"), -1.0),
    (("config", "max_kl"), 0.02),
    (("config", "max_kl"), "0.01"),
    (("config", "seed"), float("nan")),
    (("config", "seed"), 1),  # that of the random features would be another
    (("config", "no_such_option"), 1),
    (("config", "hidden"), [5]),
    (("config", "activation"), "relu"),
    (("config", "dtype"), "float64"),
    (("config", "critic"), "adam"),
    (("config", "n_envs"), 2),
    (("policy",), ...),
    (("policy",), None),
    (("policy", "observation_size"), 5),
    (("policy", "distribution"), {"name": "Bernoulli", "n": 2}),
    (("critic", "hidden"), [9]),
    (("progress",), ...),
    (("progress",), []),
    *(
        (("progress", name), value)
        for name in (
            "num_timesteps",
            "num_updates",
            "num_episodes",
            "failures",
            "rng_counter",
            "moments_count",
            "moments_rejected",
        )
        for value in (-1, 1.5, "3", None, float("nan"), float("inf"), 2**70, True, [1], ...)
    ),
    *((("progress", "seconds"), value) for value in (-1, "1", None, float("nan"), float("inf"))),
    *(
        (("progress", "recent_episodes"), value)
        for value in (
            None,
            5,
            [1],
            [[1, 2]],
            [[1, 2, 3, 4]],
            [["a", 2, 3]],
            [[float("nan"), 2, 3]],
            [[1.0, -2, 3.0]],
        )
    ),
    *(
        (("progress", "target_scale"), value)
        for value in (None, [1], [0, -1], [0, 0], [float("nan"), 1], ["a", "b"], [0, float("inf")])
    ),
    *((("progress", "n_envs"), value) for value in (0, -1, 2, 10**12, "1", None, 1.5)),
    *(
        (("progress", "replay_lengths"), value)
        for value in (None, [], [-1], [10**12], ["a"], [1.5], [1, 1], [[1]])
    ),
    *(
        (("progress", "optimizer_sizes"), value)
        for value in (None, {}, {"critic/optimizer": -1}, {"critic/optimizer": 10**12})
    ),
]


HARMLESS = (0.02, "adam", 2)  # where somebody computes the checksum anew


@pytest.mark.parametrize(("path", "value"), EDITS)
def test_edited_metadata_is_refused(sound, tmp_path, path, value):
    metadata, arrays = read_checkpoint(sound)
    changed = edited(metadata, path, value)
    write_checkpoint(tmp_path / "edited.npz", changed, arrays)
    refused(tmp_path / "edited.npz", "cannot (read|use) checkpoint")
    if path[0] != "sha256" and value not in HARMLESS and not contains_nan(changed):
        write_checkpoint(tmp_path / "edited.npz", with_checksum(changed, arrays), arrays)
        refused(tmp_path / "edited.npz", "cannot (read|use) checkpoint")


def contains_nan(metadata):
    """Whether it is no JSON, of which there cannot be a checksum."""
    try:
        json.dumps(metadata, allow_nan=False)
    except ValueError:
        return True
    return False


def test_impossible_statistics_are_refused(sound, tmp_path):
    metadata, arrays = read_checkpoint(sound)
    for name, value in (
        ("observations/squares", -1.0),
        ("environments/lengths", -1),
        ("environments/episodes", -1),
    ):
        bad = {**arrays, name: np.full_like(arrays[name], value)}
        write_checkpoint(tmp_path / "bad.npz", with_checksum(metadata, bad), bad)
        refused(tmp_path / "bad.npz", "cannot use checkpoint")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b"[" * 200_000, b'{"format_version": 1}']
)
def test_metadata_that_is_no_json_object_is_refused(sound, tmp_path, text):
    _, arrays = read_checkpoint(sound)
    with (tmp_path / "bad.npz").open("wb") as file:
        np.savez(file, metadata=np.frombuffer(text, np.uint8), **arrays)
    refused(tmp_path / "bad.npz", "cannot (read|use) checkpoint")


def test_foreign_files_are_refused(sound, tmp_path):
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    refused(tmp_path / "foreign.npz", "has no member 'metadata'")
    np.savez_compressed(tmp_path / "packed.npz", metadata=np.zeros(3, np.uint8))
    refused(tmp_path / "packed.npz", "is compressed")
    np.savez(tmp_path / "numbers.npz", metadata=np.zeros(3))
    refused(tmp_path / "numbers.npz", r"array 'metadata' is float64 \(3,\); wanted uint8")


@pytest.mark.parametrize(
    "env", ["Acrobot-v1", "MountainCarContinuous-v0", Random, Discrete, Counting]
)
def test_a_checkpoint_for_other_spaces_is_refused(sound, env):
    refused(sound, "the environment wants the policy", env=env)


def test_a_checkpoint_of_an_unregistered_environment_needs_it_again(tmp_path):
    agent = natgrad.TRPO(Random, **SMALL)
    agent.save(tmp_path / "agent.npz")
    refused(tmp_path / "agent.npz", "its environment None has to be passed as `env`")
    assert contents(natgrad.TRPO.load(tmp_path / "agent.npz", Random)) == contents(agent)


def test_a_file_cannot_make_gymnasium_import_a_module(sound, tmp_path, monkeypatch):
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    metadata, arrays = read_checkpoint(sound)
    write_checkpoint(tmp_path / "a.npz", {**metadata, "env_id": "payload:CartPole-v1"}, arrays)
    refused(tmp_path / "a.npz", "has to be passed")
    assert not (tmp_path / "trace").exists()


def test_a_refused_file_leaves_no_trace_in_a_living_agent(sound, tmp_path):
    agent = natgrad.TRPO("CartPole-v1", **SMALL).learn(64)
    before = contents(agent)
    (tmp_path / "cut.npz").write_bytes(sound.read_bytes()[:-1])
    refused(tmp_path / "cut.npz")
    assert contents(agent) == before


# Writing ---------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    agent = natgrad.TRPO("CartPole-v1", **SMALL)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "a.npz", tmp_path / "file" / "a.npz", "/proc/a.npz"):
        with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*: .*unchanged"):
            agent.save(path)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        agent.save(tmp_path / "folder.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.npz"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import natgrad
from environments import SMALL, contents
folder = Path(sys.argv[1])
agent = natgrad.TRPO("CartPole-v1", **SMALL).learn(64)
agent.save(folder / "agent.npz")
before = (folder / "agent.npz").read_bytes()
agent.learn(64)
state = contents(agent)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in [0, 1, 100, *range(200, len(before), len(before) // 50), len(before) - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        agent.save(folder / "agent.npz")
    except natgrad.agents.CheckpointError as error:
        assert "File too large" in str(error) and "unchanged" in str(error), error
    else:
        raise AssertionError(limit)
    assert (folder / "agent.npz").read_bytes() == before, limit
    assert [path.name for path in folder.iterdir()] == ["agent.npz"], limit
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert contents(agent) == state
agent.save(folder / "agent.npz")
assert contents(folder / "agent.npz") == state
"""


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path):
    code, output, errors = run("-c", FULL_DISK, tmp_path)
    assert (code, output, errors) == (0, "", "")


FULL_DISK_IN_TRAINING = """
import resource, sys, warnings
from pathlib import Path
import natgrad
from environments import SMALL
folder = Path(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
warnings.simplefilter("always")
def fill(agent, log):
    limit = 40_000 if agent.num_updates >= 2 else hard  # enough for the other files
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
agent = natgrad.TRPO("CartPole-v1", batch_size=64)
try:
    agent.learn(64 * 5, callback=fill, run_dir=folder, checkpoint_every=1)
except natgrad.agents.CheckpointError as error:
    print("at the end:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(agent.num_updates, natgrad.TRPO.load(folder).num_updates)
agent.save(folder / "late.npz")
"""


def test_training_goes_on_when_the_disk_is_full_and_says_so(tmp_path):
    code, output, errors = run("-W", "default", "-c", FULL_DISK_IN_TRAINING, tmp_path)
    assert code == 0, errors
    assert errors.count("File too large; what was there before is unchanged; training goes on") == 4
    assert output.startswith("at the end: cannot write checkpoint")
    assert output.splitlines()[-1] == "5 1"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["checkpoint-000000000.npz", "checkpoint-000000001.npz"]


def test_a_checkpoint_has_the_permissions_that_the_user_gives_new_files(tmp_path):
    natgrad.TRPO("CartPole-v1", batch_size=64).save(tmp_path / "agent.npz")
    (tmp_path / "ordinary").write_bytes(b"")
    assert (tmp_path / "agent.npz").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
