import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from modicum.core import tensorfile, tensorformat, tensorwriter
from modicum.core.errors import ModelError
from modicum.core.tensorfile import Shards, TensorFile
from modicum.core.tensorwriter import TensorWriter, file_bytes, header_bytes

DTYPES = list(tensorformat.DTYPES.values())
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=8)
METADATA = st.none() | st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.text('a\n"\\é\x7f\x1f', max_size=5)
)


def filled(dtype, shape, seed=0):
    """A tensor of random bytes, any bit pattern of its dtype (of 0 and 1 where it is truth values)."""
    high = 2 if dtype == torch.bool else 256
    flat = torch.empty(shape, dtype=dtype).flatten()
    raw = torch.randint(high, (flat.numel() * dtype.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return raw.view(dtype).reshape(shape)


def fill_all(wanted):
    return {name: filled(dtype, shape, seed) for seed, (name, (dtype, shape)) in enumerate(wanted.items())}


def described(tensors):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_all(path, tensors, metadata=None, order=None):
    with TensorWriter(path, described(tensors), metadata) as writer:
        for name in order or tensors:
            writer.write(name, tensors[name])


def same(left, right):
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and bytes(tensorformat.raw_bytes(left)) == bytes(tensorformat.raw_bytes(right))
    )


def header_of(path):
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def raw_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tensorfile")


# --- the library reads what we write, and we read what it writes


@settings(max_examples=100, deadline=None)
@given(wanted=TENSORS, data=st.data())
def test_library_reads_our_file_and_size_is_predicted(folder, wanted, data):
    tensors, metadata, path = fill_all(wanted), data.draw(METADATA), folder / "ours.safetensors"
    write_all(path, tensors, metadata, order=data.draw(st.permutations(list(tensors))))
    assert path.stat().st_size == file_bytes(wanted, metadata)
    assert header_bytes(wanted, metadata) == 8 + int.from_bytes(path.read_bytes()[:8], "little")
    with safetensors.safe_open(path, "pt") as library:
        assert (library.metadata() or {}) == (metadata or {})
        assert set(library.keys()) == set(tensors)
        assert all(same(library.get_tensor(name), tensor) for name, tensor in tensors.items())


@settings(max_examples=100, deadline=None)
@given(wanted=TENSORS, metadata=METADATA)
def test_we_read_the_librarys_file(folder, wanted, metadata):
    assume(wanted or metadata != {})  # the library (0.8) writes broken JSON for no tensors and empty metadata
    tensors, path = fill_all(wanted), folder / "theirs.safetensors"
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    with TensorFile(path) as file:
        assert file.metadata == (metadata or {})
        assert file.nbytes == path.stat().st_size
        assert {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()} == wanted
        assert all(same(file.read(name), tensor) for name, tensor in tensors.items())
        assert all(file.entries[name].nbytes == tensor.nbytes for name, tensor in tensors.items())


@settings(max_examples=100, deadline=None)
@given(wanted=TENSORS, metadata=st.none() | st.dictionaries(NAMES, NAMES, max_size=1))
@example(wanted={str(dtype): (dtype, (3,)) for dtype in DTYPES}, metadata={"format": "pt"})
@example(
    wanted={"b": (torch.int8, (3,)), "a": (torch.int8, ()), 'é\t\\"': (torch.float64, (2, 0)), "B": (torch.bfloat16, (1, 5))}, metadata={}
)
def test_bytes_equal_the_librarys(folder, wanted, metadata):
    # At most one metadata key: the library's order of several differs from call to call.
    assume(wanted or metadata != {})  # the library (0.8) writes broken JSON for no tensors and empty metadata
    tensors = fill_all(wanted)
    safetensors.torch.save_file(tensors, folder / "theirs.safetensors", metadata=metadata)
    write_all(folder / "ours.safetensors", tensors, metadata)
    assert (folder / "ours.safetensors").read_bytes() == (folder / "theirs.safetensors").read_bytes()


# --- reading


def test_rows_are_read_without_the_rest(folder, monkeypatch):
    weight = filled(torch.float16, (10, 3, 2))
    write_all(folder / "a.safetensors", {"pad": filled(torch.float32, (7,)), "w": weight})
    with TensorFile(folder / "a.safetensors") as file:
        moved, preadv = [], os.preadv
        monkeypatch.setattr(os, "preadv", lambda *given: moved.append(preadv(*given)) or moved[-1])
        assert same(file.read_rows("w", 4, 7), weight[4:7])
        assert sum(moved) == 3 * 3 * 2 * 2
        assert file.read_rows("w", 10, 10).shape == (0, 3, 2)
        for start, stop in ((-1, 2), (3, 2), (0, 11)):
            with pytest.raises(ModelError, match=r"rows of tensor 'w' must lie within its shape \[10, 3, 2\]"):
                file.read_rows("w", start, stop)


def test_rows_of_a_scalar_are_refused(folder):
    write_all(folder / "a.safetensors", {"s": torch.tensor(1.0)})
    with TensorFile(folder / "a.safetensors") as file, pytest.raises(ModelError, match="rows of tensor 's'"):
        file.read_rows("s", 0, 0)


def test_short_reads_and_writes_are_continued(folder, monkeypatch):
    tensors = {"a": filled(torch.float32, (50,)), "b": filled(torch.int8, (33,))}
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[:7], at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:5]], at))
    write_all(folder / "a.safetensors", tensors)
    with TensorFile(folder / "a.safetensors") as file:
        assert all(same(file.read(name), tensor) for name, tensor in tensors.items())


def test_threads_read_the_same_file(folder):
    tensors = {f"t{i}": filled(torch.int64, (1000,), seed=i) for i in range(20)}
    write_all(folder / "a.safetensors", tensors)
    with TensorFile(folder / "a.safetensors") as file, ThreadPoolExecutor(8) as pool:
        names = list(tensors) * 10
        assert all(same(got, tensors[name]) for name, got in zip(names, pool.map(file.read, names), strict=True))


def test_reads_are_real_under_the_meta_device(folder):
    write_all(folder / "a.safetensors", {"w": torch.ones(3)})
    with torch.device("meta"), TensorFile(folder / "a.safetensors") as file:
        assert file.read("w").sum().item() == 3


def test_unknown_name_offers_near_ones(folder):
    write_all(folder / "a.safetensors", {"layer.weight": torch.ones(3)})
    with TensorFile(folder / "a.safetensors") as file, pytest.raises(ModelError, match=r"no 'layer.wieght'. Did you mean 'layer.weight'\?"):
        file.read("layer.wieght")


def test_closed_file_is_not_read(folder):
    write_all(folder / "a.safetensors", {"w": torch.ones(3)})
    file = TensorFile(folder / "a.safetensors")
    file.close()
    file.close()
    with pytest.raises(ModelError, match=r"must be open to read tensor 'w'"):
        file.read("w")


def test_a_file_is_opened_again_without_its_header(folder, monkeypatch):
    path = folder / "a.safetensors"
    write_all(path, {"w": torch.ones(300)})
    with TensorFile(path) as file:
        pass
    monkeypatch.setattr(TensorFile, "_header", lambda self: pytest.fail("the header is known"))
    with file.again() as other:
        assert torch.equal(other.read("w"), torch.ones(300))
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(ModelError, match=r"a\.safetensors: must be as it was, had \d+ bytes and has \d+"):
        file.again()


def test_file_truncated_after_opening(folder):
    path = folder / "a.safetensors"
    write_all(path, {"w": torch.ones(300)})
    with TensorFile(path) as file:
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(ModelError, match=r"a\.safetensors: tensor 'w' must have 1200 bytes, and the file ends after 1100"):
            file.read("w")


def test_no_file_or_a_folder(tmp_path):
    for path in (tmp_path / "none", tmp_path, tmp_path / ("x" * 5000)):
        with pytest.raises(ModelError):
            TensorFile(path)


# --- hostile headers


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "a JSON object": [b"[1]", b"3", b"null"],
    "must be JSON": [
        b"",
        b"{",
        b"\xff{}",
        b'{"a":1,"a":2}',
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
        '{"a":1}'.encode("utf-16"),
        b'{"\\ud800":1}',
    ],
    "__metadata__ must map": [{"__metadata__": value} for value in (None, [], "a", {"a": 1}, {"a": None}, {"a": {}})],
    "tensor 'w' must have a dtype, a shape": [
        {"w": value}
        for value in (
            None,
            [],
            {},
            entry(dtype=None),
            entry(dtype=["F32"]),
            entry(shape=[True, 2]),
            entry(shape=[2.0]),
            entry(shape=[-2]),
            entry(shape=["2"]),
            entry(offsets=[0]),
            entry(offsets=[0, 8, 8]),
            entry(offsets=[False, 8]),
            entry(offsets=[-8, 0]),
            {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        )
    ],
    "tensor 'w' must have a dtype that is known": [{"w": entry(dtype=code)} for code in ("F4", "f32", "", "X" * 10_000)],
    "tensor 'w' must lie within": [{"w": entry(offsets=pair)} for pair in ((0, 12), (8, 0), (2**62, 2**62 + 8), (10**4000, 10**4000 + 8))],
    "tensor 'w' must have the bytes": [
        {"w": value} for value in (entry(shape=[3]), entry(shape=[]), entry(shape=[2**40]), entry(shape=[0]), entry("F64"))
    ],
    "tensor 'w' must be of a size": [{"w": entry(shape=shape, offsets=(0, 0))} for shape in ([0, 2**62, 4], [2**64, 0], [10**200, 0])],
    "tensor 'v' must begin where": [
        {"w": entry(), "v": entry()},
        {"w": entry(shape=[1], offsets=(0, 4)), "v": entry("F16", offsets=(2, 6))},
        {"w": entry("U8", [3], (0, 3)), "v": entry("U8", [4], (4, 8))},
        {"v": entry("U8", [4], (4, 8))},
    ],
    "last 4 bytes belong to none": [{"w": entry(shape=[1], offsets=(0, 4))}],
}


@pytest.mark.parametrize(("reason", "header"), [(reason, header) for reason, headers in HOSTILE.items() for header in headers])
def test_hostile_header_is_named(folder, reason, header):
    path = raw_file(folder / "hostile.safetensors", header, b"\0" * 8)
    with pytest.raises(ModelError, match=r"hostile\.safetensors") as caught:
        TensorFile(path)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("raw", [b"", b"1234567", b"\xff" * 20, (3).to_bytes(8, "little") + b"{}"])
def test_header_length_is_checked_against_the_file(folder, raw):
    (folder / "short.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match=r"short.safetensors: (must begin with 8 bytes|the header must fit)"):
        TensorFile(folder / "short.safetensors")


def test_header_over_the_limit_is_refused_before_it_is_read(folder, monkeypatch):
    path = raw_file(folder / "long.safetensors", b"{}", length=10**8 + 1)
    os.truncate(path, 2 * 10**8)  # a hole: it takes no room on the disk
    with pytest.raises(ModelError, match="the header must fit in the file and in 100000000 bytes"):
        TensorFile(path)
    path.unlink()


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 40),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([*tensorformat.DTYPES, "F4"]),
    st.lists(st.integers(-1, 40) | st.booleans(), max_size=4),
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), st.lists(st.integers(0, 40), max_size=2), max_size=3),
)


@st.composite
def hostile_bytes(draw):
    """A good file, with values of its header exchanged, then bytes of it changed, dropped or added."""
    header = {"__metadata__": {"a": "b"}, "w": entry(), "v": entry("I8", (2, 3), (8, 14)), "e": entry("F64", (0, 3), (14, 14))}
    for name, field, value in draw(
        st.lists(st.tuples(st.sampled_from([*header, "new"]), st.sampled_from(["dtype", "shape", "data_offsets", ""]), ODD), max_size=3)
    ):
        if field and isinstance(header.get(name), dict):
            header[name][field] = value
        else:
            header[name] = value
    text = json.dumps(header).encode()
    raw = bytearray(len(text).to_bytes(8, "little") + text + bytes(14))
    for at, byte in draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=3)):
        raw[at] = byte
    return bytes(raw[: draw(st.sampled_from([len(raw)] * 4 + [5, 8, 40, len(raw) - 1]))]) + draw(
        st.sampled_from([b""] * 4 + [b"\0", b" " * 9])
    )


@settings(max_examples=400, deadline=None)
@given(raw=hostile_bytes())
def test_only_model_errors_come_out_of_mutated_files(folder, raw):
    path = folder / "mutated.safetensors"
    path.write_bytes(raw)
    try:
        with TensorFile(path) as file:
            assert sum(file.read(name).nbytes for name in file.entries) < len(raw)
    except ModelError as error:
        assert "mutated.safetensors" in str(error)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
def test_refused_files_are_closed(folder):
    raw_file(folder / "a.safetensors", b"[]")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(ModelError) as caught:  # the traceback is alive, and with it the object
            TensorFile(folder / "a.safetensors")
        assert len(list(Path("/proc/self/fd").iterdir())) == before, caught


# --- writing


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(3, dtype=torch.float16), r"must be torch.float32 \[3\] as announced, got torch.float16 \[3\]"),
        (torch.ones(1, 3), r"got torch.float32 \[1, 3\]"),
        (torch.ones(3, device="meta"), "must have its values in memory"),
        (torch.ones(3).to_sparse(), "must have its values in memory"),
    ],
)
def test_other_tensors_than_announced_are_refused(tmp_path, tensor, reason):
    with pytest.raises(ModelError, match=reason), TensorWriter(tmp_path / "a", {"w": (torch.float32, (3,))}) as writer:
        writer.write("w", tensor)
    assert not list(tmp_path.iterdir())


def test_writing_twice_or_unknown_names_or_late_is_refused(tmp_path):
    with TensorWriter(tmp_path / "a", {"w": (torch.float32, (3,))}) as writer:
        writer.write("w", torch.ones(3))
        with pytest.raises(ModelError, match="'w' must be written once"):
            writer.write("w", torch.ones(3))
        with pytest.raises(ModelError, match="no 'v'"):
            writer.write("v", torch.ones(3))
    with pytest.raises(ModelError, match="before the file is closed"):
        writer.write("w", torch.ones(3))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_close_needs_every_tensor_and_leaves_nothing_otherwise(tmp_path):
    (tmp_path / "a").write_bytes(b"older file")
    writer = TensorWriter(tmp_path / "a", {"w": (torch.float32, (3,)), "v": (torch.float32, (0,))})
    writer.write("w", torch.ones(3))
    with pytest.raises(ModelError, match="1 of 2 were not, such as 'v'"):
        writer.close()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"older file")]


def test_an_error_inside_the_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), TensorWriter(tmp_path / "a", {}):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EIO, "the system says")]
)
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_system_errors_become_model_errors(tmp_path, monkeypatch, call, code, reason):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ModelError, match=rf"{tmp_path.name}/a: .*{reason}"):
        write_all(tmp_path / "a", {"w": torch.ones(3)})
    assert not list(tmp_path.iterdir())


def test_folder_must_exist(tmp_path):
    with pytest.raises(ModelError, match="No such file or directory"):
        TensorWriter(tmp_path / "none" / "a", {})


def test_large_and_strided_and_lazy_tensors(tmp_path, monkeypatch):
    for module in (tensorfile, tensorwriter):
        monkeypatch.setattr(module, "PIECE", 64)
    tensors = {
        "large": filled(torch.float64, (9, 11)),
        "transposed": filled(torch.float32, (5, 7)).T,
        "expanded": filled(torch.int16, (1, 7)).expand(6, 7),
        "conjugate": torch.complex(torch.ones(20), torch.ones(20)).conj(),
        "parameter": torch.nn.Parameter(torch.ones(30)),
    }
    write_all(tmp_path / "a", tensors)
    loaded = safetensors.torch.load_file(tmp_path / "a")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_contiguous_tensors_are_written_from_where_they_lie(tmp_path, monkeypatch):
    weight, seen, pwrite = torch.ones(40), [], os.pwrite
    with TensorWriter(tmp_path / "a", {"w": (torch.float32, (40,))}) as writer:
        monkeypatch.setattr(
            os, "pwrite", lambda fd, view, at: seen.append(torch.frombuffer(view, dtype=torch.uint8).data_ptr()) or pwrite(fd, view, at)
        )
        writer.write("w", weight)
    assert seen == [weight.data_ptr()]


@pytest.mark.parametrize(
    ("entries", "metadata"),
    [
        ({"__metadata__": (torch.float32, (1,))}, None),
        ({1: (torch.float32, (1,))}, None),
        ({"w": (torch.complex128, (1,))}, None),
        ({"w": (torch.float32, (-1,))}, None),
        ({"w": (torch.float32, (True,))}, None),
        ({"w": (torch.float32, (2**62, 4))}, None),
        ({"\ud800": (torch.float32, (1,))}, None),
        ({}, {"a": 1}),
        ({}, {"a": "\ud800"}),
    ],
)
def test_what_cannot_be_stored_is_refused_before_a_file_is_made(tmp_path, entries, metadata):
    with pytest.raises(ModelError):
        TensorWriter(tmp_path / "a", entries, metadata)
    with pytest.raises(ModelError):
        file_bytes(entries, metadata)
    assert not list(tmp_path.iterdir())


# --- directories

INDEX = "model.safetensors.index.json"
ONE, TWO = {"a": torch.ones(2), "b": torch.zeros(3)}, {"c": torch.arange(4)}


def sharded(folder):
    write_all(folder / "one.safetensors", ONE)
    write_all(folder / "two.safetensors", TWO)
    return indexed(folder, {"c": "two.safetensors", "a": "one.safetensors", "b": "one.safetensors"})


def indexed(folder, homes):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))
    return folder


def test_shards_behind_an_index(tmp_path):
    with Shards(sharded(tmp_path)) as shards:
        assert shards.names() == ["c", "a", "b"]
        assert "a" in shards and "d" not in shards
        assert all(same(shards.read(name), tensor) for name, tensor in (ONE | TWO).items())
        assert same(shards.read_rows("c", 1, 3), TWO["c"][1:3])
        assert shards.entry("b").shape == (3,)
        assert shards.files == [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
        assert shards.nbytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
        with pytest.raises(ModelError, match="no 'd'"):
            shards.entry("d")
    with pytest.raises(ModelError, match="must be open"):
        shards.read("a")


def test_single_file_and_its_name(tmp_path):
    write_all(sharded(tmp_path) / "model.safetensors", {"x": torch.ones(1)})
    assert Shards(tmp_path).names() == ["x"]
    assert Shards(tmp_path, single="one.safetensors").names() == ["a", "b"]
    assert Shards(tmp_path, single="none").names() == ["c", "a", "b"]


def test_tensors_the_index_does_not_name_are_left_alone(tmp_path):
    assert Shards(indexed(sharded(tmp_path), {"a": "one.safetensors"})).names() == ["a"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../two.safetensors", "sub/two.safetensors", "sub\\two.safetensors", "a\0b", "{folder}/two.safetensors"]
)
def test_index_pointing_outside(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    write_all(tmp_path / "two.safetensors", TWO)
    indexed(inside, {"c": name.format(folder=tmp_path)})
    with pytest.raises(ModelError, match="plain file name"):
        Shards(inside)


@pytest.mark.parametrize("name", ["x" * 5000, "none"])
def test_missing_shard(tmp_path, name):
    with pytest.raises(ModelError, match=r"checkpoint .*(must be there, and it is missing|File name too long)"):
        Shards(indexed(sharded(tmp_path), {"a": name}))


def test_truncated_shard(tmp_path):
    path = sharded(tmp_path) / "two.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"two\.safetensors: tensor 'c' must lie within"):
        Shards(tmp_path)


def test_tensor_missing_from_its_shard(tmp_path):
    with pytest.raises(ModelError, match=r"tensor 'c' in one\.safetensors, and it is not there"):
        Shards(indexed(sharded(tmp_path), {"c": "one.safetensors"}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "x", "a": "y"}}',
        '{"weight_map": {"a": "\\ud800"}}',
    ],
)
def test_malformed_index(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ModelError, match=INDEX):
        Shards(tmp_path)


def hub(root):
    """A hub cache's folders: blobs beside snapshots, whose files are links to them."""
    snapshot = root / "models--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (root / "models--x" / "blobs").mkdir()
    return snapshot


@pytest.mark.parametrize("below", [".", "unet"])
def test_hub_links_are_followed(tmp_path, below):
    snapshot = hub(tmp_path)
    (snapshot / below).mkdir(exist_ok=True)
    write_all(tmp_path / "models--x" / "blobs" / "123", ONE)
    (snapshot / below / "model.safetensors").symlink_to(os.path.relpath(tmp_path / "models--x" / "blobs" / "123", snapshot / below))
    with Shards(snapshot / below) as shards:
        assert same(shards.read("a"), ONE["a"])
        assert shards.nbytes == (tmp_path / "models--x" / "blobs" / "123").stat().st_size
    (tmp_path / "elsewhere").symlink_to(snapshot / below)
    assert Shards(tmp_path / "elsewhere").names() == ["a", "b"]


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, "two.safetensors"])
def test_other_links_out_are_refused(tmp_path, name):
    snapshot = hub(tmp_path)
    sharded(snapshot)
    write_all(snapshot / "model.safetensors", ONE)
    if name != "model.safetensors":
        (snapshot / "model.safetensors").unlink()
    (snapshot / name).rename(tmp_path / "target")
    (snapshot / name).symlink_to("../../../target")
    with pytest.raises(ModelError, match=f"'{name}' must lie in the directory, and it links outside"):
        Shards(snapshot)


def test_links_within_the_directory_are_followed(tmp_path):
    write_all(tmp_path / "weights", ONE)
    (tmp_path / "model.safetensors").symlink_to("weights")
    assert Shards(tmp_path).names() == ["a", "b"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_pickled_checkpoints_are_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match=rf"only {name}: pickled checkpoints .* refused\. .*--allow-pickle"):
        Shards(tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(ModelError, match="holds neither"):
        Shards(tmp_path)
    with pytest.raises(ModelError, match="holds neither"):
        Shards(tmp_path / "none")
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(ModelError, match=r"holds \['other.safetensors'\] instead"):
        Shards(tmp_path)
