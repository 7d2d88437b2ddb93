"""Readers of torch's and numpy's weight files; damaged, hostile files are refused."""

import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cdl_jax.data.readers import npz_files
from cdl_jax.errors import UserError
from cdl_jax.models.weights.state_dicts import read_state


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def numbers(values):
    return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"


def storage(key, count, kind="FloatStorage"):
    """Returns torch.save's pickle instructions that fetch a stored block of numbers."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + numbers([count])[1:] + b"Q"


def tensor(source, offset, shape, strides):
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    position = numbers([offset])[1:-1] + numbers(shape) + numbers(strides)
    return rebuild + source + position + b"\x89ccollections\nOrderedDict\n)RtR"


def torch_zip(path, items, blocks, compression=zipfile.ZIP_STORED):
    """Writes a file as torch.save does, without torch.

    `items` are pickle instructions by name, `blocks` are stored blocks by key.
    """
    body = b"".join(text(name) + code + b"s" for name, code in items.items())
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + body + b".")
        archive.writestr("archive/byteorder", b"little")
        for key, block in blocks.items():
            archive.writestr(f"archive/data/{key}", block)
    return path


def state_dict_zip(path, state, wrapper=None):
    items, blocks = {}, {}
    for key, (name, array) in enumerate(state.items()):
        strides = [s // array.itemsize for s in np.ascontiguousarray(array).strides]
        items[name] = tensor(storage(str(key), array.size), 0, array.shape, strides)
        blocks[key] = array.tobytes()
    if wrapper:
        inner = b"}" + b"".join(text(name) + code + b"s" for name, code in items.items())
        items = {"epoch": b"K\x03", wrapper: inner}
    return torch_zip(path, items, blocks)


def checkpoint_zip(path, tree):
    """A file as torch.save writes it from nested dicts, lists, arrays and numbers."""
    blocks = {}

    def encode(value):
        if isinstance(value, np.ndarray):
            key = str(len(blocks))
            blocks[key] = np.ascontiguousarray(value).tobytes()
            strides = [s // value.itemsize for s in np.ascontiguousarray(value).strides]
            return tensor(storage(key, value.size), 0, value.shape, strides)
        if isinstance(value, dict):
            items = [(text(name) if isinstance(name, str) else encode(name), encode(v)) for name, v in value.items()]
            return b"}" + b"".join(name + code + b"s" for name, code in items)
        if isinstance(value, list):
            return b"](" + b"".join(map(encode, value)) + b"e"
        return b"J" + struct.pack("<i", value)

    return torch_zip(path, {name: encode(value) for name, value in tree.items()}, blocks)


def state_of(seed=0):
    """A few tensors under names of timm's."""
    rng = np.random.default_rng(seed)
    shapes = {"cls_token": (1, 1, 6), "norm.weight": (6,), "norm.bias": (6,), "head.weight": (5, 6), "head.bias": (5,)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array, err_msg=name)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_state_dict_of_torch_is_read_without_torch(tmp_path, wrapper):
    state = state_of()
    assert_same(read_state(state_dict_zip(tmp_path / "w.pth", state, wrapper)), state)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_file_of_real_torch(tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    state = state_of()
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    tensors["norm.bias"] = torch.cat([torch.zeros(5), tensors["norm.bias"]])[5:]  # a view into a larger storage
    tensors["head.weight"] = tensors["head.weight"].t().contiguous().t()  # a transposed view
    tensors["norm.weight"] = torch.nn.Parameter(tensors["norm.weight"])
    content = {wrapper: tensors, "epoch": 3, "lr": [0.1]} if wrapper else tensors
    torch.save(content, tmp_path / "w.pth")
    assert_same(read_state(tmp_path / "w.pth"), state)
    torch.save({name: array.detach().bfloat16() for name, array in tensors.items()}, tmp_path / "half.pth")
    assert_same(read_state(tmp_path / "half.pth"), {name: a.astype(ml_dtypes.bfloat16) for name, a in state.items()})
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_state(tmp_path / "old.pth"), state)


def test_entries_of_a_checkpoint_that_are_not_weights_are_left_out(tmp_path):
    state, moments = state_of(), {"exp_avg": np.ones(6, np.float32), "step": np.ones(1, np.float32)}
    optimizer = {"state": {0: moments, "norm.weight": moments}, "param_groups": [{"lr": 1, "params": [0, 1]}]}
    tree = {"model": {**state, "epoch": 3}, "optimizer": optimizer, "loss": {"center": np.ones((1, 6), np.float32)}}
    assert_same(read_state(checkpoint_zip(tmp_path / "w.pth", tree)), state)
    assert_same(read_state(checkpoint_zip(tmp_path / "bare.pth", {**state, "epoch": 3})), state)


@pytest.mark.parametrize("average", ["ema_weights", "averaged", "model_teacher"])
def test_a_second_network_of_an_unknown_layout_needs_a_choice(tmp_path, average):
    one, other = state_of(0), state_of(1)
    path = checkpoint_zip(tmp_path / "w.pth", {"model": one, average: other})
    with pytest.raises(UserError, match=f"has several networks: choose one .*it has model, {average}"):
        read_state(path)
    assert_same(read_state(path, "model"), one)
    assert_same(read_state(path, average), other)


def test_nested_dicts_that_share_one_dict_are_refused(tmp_path):
    """Each of 8 levels names the dict below 20 times: 20^8 entries in a small file."""
    code = tensor(storage("0", 4), 0, [4], [1])
    for level in range(8):
        below = code + b"r" + struct.pack("<I", level)
        code = b"}" + text("0") + below + b"s"
        code += b"".join(text(str(n)) + b"j" + struct.pack("<I", level) + b"s" for n in range(1, 20))
    torch_zip(tmp_path / "w.pth", {"model": code}, {"0": np.ones(4, np.float32).tobytes()})
    with pytest.raises(UserError, match="holds more than the tensors of a state dict"):
        read_state(tmp_path / "w.pth")


def test_modules_of_torch_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UserError, match="has no place in a state dict: save the state dict alone as .safetensors"):
        read_state(tmp_path / "module.pth")


def legacy(path, items, blocks, little=True, keys=None):
    """Writes torch.save's file before 1.6; `blocks`: key -> (count of numbers, bytes)."""
    body = b"".join(text(name) + code + b"s" for name, code in items.items())
    start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little}]
    parts = [pickle.dumps(value, protocol=2) for value in start]
    parts += [b"\x80\x02}" + body + b".", pickle.dumps(keys or list(blocks), protocol=2)]
    path.write_bytes(b"".join(parts + [struct.pack("<q", count) + block for count, block in blocks.values()]))
    return path


def test_a_state_dict_from_before_torch_1_6_is_read(tmp_path):
    state = state_of()
    shared = np.concatenate([state["norm.weight"], state["head.weight"].ravel()])  # two views of one storage
    items = {
        "norm.weight": tensor(storage("7", 36), 0, [6], [1]),
        "head.weight": tensor(storage("7", 36), 6, [5, 6], [6, 1]),
        "norm.bias": tensor(storage("8", 6), 0, [6], [1]),
    }
    blocks = {"8": (6, state["norm.bias"].tobytes()), "7": (36, shared.tobytes())}
    assert_same(read_state(legacy(tmp_path / "w.pth", items, blocks)), {name: state[name] for name in items})


FOUR = np.ones(4, np.float32).tobytes()
HOSTILE_LEGACY = {
    "larger storage": ({"a": storage("0", 2**30)}, {"0": (2**30, FOUR)}, {}, "declares 1073741824 float32 but stores"),
    "other number": ({"a": storage("0", 4)}, {"0": (3, FOUR)}, {}, "declares 4 float32 but stores 3"),
    "cut off": ({"a": storage("0", 4)}, {"0": (4, FOUR[:-1])}, {}, "damaged"),
    "key twice": ({"a": storage("0", 4)}, {"0": (4, FOUR)}, {"keys": ["0", "0"]}, "damaged"),
    "storage without numbers": (
        {"a": storage("0", 4), "b": storage("1", 4)},
        {"0": (4, FOUR)},
        {},
        "lacks the numbers",
    ),
    "big end first": ({"a": storage("0", 4)}, {"0": (4, FOUR)}, {"little": False}, "big-endian"),
}


@pytest.mark.parametrize(("sources", "blocks", "options", "message"), HOSTILE_LEGACY.values(), ids=HOSTILE_LEGACY)
def test_hostile_sizes_before_torch_1_6_are_refused(tmp_path, sources, blocks, options, message):
    items = {name: tensor(source, 0, [4], [1]) for name, source in sources.items()}
    with pytest.raises(UserError, match=message):
        read_state(legacy(tmp_path / "w.pth", items, blocks, **options))


def test_a_file_of_a_big_endian_machine_is_refused(tmp_path):
    with zipfile.ZipFile(state_dict_zip(tmp_path / "little.pth", state_of())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert members["archive/byteorder"] == b"little"
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as archive:
        for name, content in {**members, "archive/byteorder": b"big"}.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="was written on a big-endian machine"):
        read_state(tmp_path / "big.pth")


def test_names_of_no_known_layout_are_unchanged(tmp_path):
    names = ["Transformer/encoderblock_0/Dense_7/kernel", "module.foo.weight", "blocks.0.attn.q_norm.weight"]
    np.savez(tmp_path / "w.npz", **{name: np.ones(2) for name in names})
    assert sorted(read_state(tmp_path / "w.npz")) == sorted(names)


class Attack:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pth_is_not_run(tmp_path, protocol):
    mark = tmp_path / "code-was-run"
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"cls_token": Attack(mark)}, protocol=protocol))
    with pytest.raises(UserError, match="safetensors"):
        read_state(tmp_path / "w.pth")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Attack(mark)))  # the attack is a real one
    assert mark.exists()


def test_the_message_names_the_refused_call(tmp_path):
    torch_zip(tmp_path / "w.pth", {"cls_token": b"cbuiltins\neval\n(" + text("1 + 1") + b"tR"}, {})
    with pytest.raises(UserError, match="wants to call builtins.eval, which was not run"):
        read_state(tmp_path / "w.pth")


ONE = {"0": np.ones(4, np.float32).tobytes()}
HOSTILE_PTH = {
    "more numbers than stored": (tensor(storage("0", 4), 0, [5], [1]), "only 4 numbers are stored"),
    "strides of zero": (tensor(storage("0", 4), 0, [2**20, 2**20], [0, 0]), "only 4 numbers are stored"),
    "beyond the end": (tensor(storage("0", 4), 2, [3], [1]), "only 4 numbers are stored"),
    "negative stride": (tensor(storage("0", 4), 3, [4], [-1]), "impossible sizes"),
    "view of a view": (tensor(tensor(storage("0", 4), 0, [2, 2], [2, 1]), 1, [2], [2]), "impossible sizes"),
    "larger storage": (tensor(storage("0", 2**30), 0, [2], [1]), "but stores 16 bytes"),
    "memo index": (b"K\x01r\xff\xff\xff\x7f", "holds no state dict"),
    "no tensor": (b"K\x01", "holds no state dict"),
    "cut off": (b"(", "damaged"),
}


@pytest.mark.parametrize("code, message", HOSTILE_PTH.values(), ids=HOSTILE_PTH)
def test_hostile_sizes_in_a_pth_are_refused(tmp_path, code, message):
    torch_zip(tmp_path / "w.pth", {"cls_token": code}, ONE)
    with pytest.raises(UserError, match=message):
        read_state(tmp_path / "w.pth")


def test_compressed_pth_is_refused(tmp_path):
    code = tensor(storage("0", 2**20), 0, [2**20], [1])
    torch_zip(tmp_path / "w.pth", {"cls_token": code}, {"0": bytes(2**22)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed member"):
        read_state(tmp_path / "w.pth")


def test_hostile_npz_is_refused(tmp_path):
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 80)
    large = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}".ljust(79) + b"\n"
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive:
        archive.writestr("cls_token.npy", header + large + bytes(16))
    with pytest.raises(UserError, match=r"declares \[1000000, 1000000\] float32 but stores 16 bytes"):
        read_state(tmp_path / "large.npz")
    mark = tmp_path / "code-was-run"
    np.savez(tmp_path / "objects.npz", cls_token=np.array([Attack(mark)], dtype=object))
    with pytest.raises(UserError, match="Python objects"):
        read_state(tmp_path / "objects.npz")
    assert not mark.exists()


def test_an_npz_larger_than_the_limit_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_files, "_UNPACKED_LIMIT", 2**20)
    np.savez_compressed(tmp_path / "bomb.npz", cls_token=np.zeros(2**24, np.float32))
    with pytest.raises(UserError, match="would unpack to 0.1 GiB"):
        read_state(tmp_path / "bomb.npz")
    np.savez(tmp_path / "stored.npz", cls_token=np.zeros(2**24, np.float32))
    assert read_state(tmp_path / "stored.npz")["cls_token"].shape == (2**24,)


UNREADABLE = {
    "legacy": (pickle.dumps({"a": 1}, protocol=2), "a bare pickle, which torch.save has not written.*safetensors"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "html": (b"<html>not found</html>", "not a weight file: .*; it is a web page"),
    "html with spaces": (b"\n <!DOCTYPE html><html>", "not a weight file: .*; it is a web page"),
    "empty": (b"", "not a weight file: .*; it is empty, download it again"),
    "gz": (b"\x1f\x8b\x08" + bytes(80), "not a weight file: .*; it is compressed with gzip, unpack it first"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(80), "not a weight file: .*; it is an HDF5 file"),
    "npy": (b"\x93NUMPY\x01" + bytes(80), "not a weight file: .*; it is one array"),
    "index.json": (b'{"metadata": {}, "weight_map": {}}', "not a weight file: .*; it is JSON text, such as the index"),
    "cut zip": (b"PK\x03\x04 cut off", "damaged"),
    "safetensors": (struct.pack("<Q", 2**40) + b'{"a":', "damaged"),
}


@pytest.mark.parametrize("content, message", UNREADABLE.values(), ids=UNREADABLE)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_state(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
