"""Hostile and damaged files: each is refused in one sentence, none runs anything, none takes memory it has not."""

import collections
import io
import os
import pickle
import random
import resource
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from flowtron.checkpoint import load_training_state, load_weights
from flowtron.convert import convert
from flowtron.errors import InputError
from flowtron.torchfile import LEGACY_MAGIC, read_file

DATA = Path(__file__).parent / "data" / "legacy"
TOO_MUCH = 1 << 29


@pytest.fixture(autouse=True)
def contained(tmp_path, monkeypatch):
    """Run in an empty folder, with little memory to spare, and look for traces of execution afterwards."""
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + TOO_MUCH, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not list(tmp_path.rglob("executed*"))


def refused(path, *parts):
    """Check that a file is refused in one sentence with the given parts, in memory of the order of the file's size."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            convert(path, "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message and len(message) < 500
    assert "memory" not in message.lower()
    assert all(part in message for part in parts), message
    assert peak < 8 * Path(path).stat().st_size + (4 << 20)
    assert not Path("out").exists()


class Reduced:
    """Pickles as a call of a function, and runs it when it is loaded as pickles usually are."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(program, storages=None, name="hostile.pt", root="archive", **options):
    """Write a zip container with a hand-made pickle."""
    with zipfile.ZipFile(name, "w", **options) as file:
        file.writestr(f"{root}/data.pkl", program)
        file.writestr(f"{root}/version", "3\n")
        for key, content in (storages or {}).items():
            file.writestr(f"{root}/data/{key}", content)
    return name


def program(body):
    return b"\x80\x02" + body + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name_of(module, name):
    return f"c{module}\n{name}\n".encode()


def integer(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values):
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def storage(count, key="0", kind="FloatStorage"):
    return b"(" + text("storage") + name_of("torch", kind) + text(key) + text("cpu") + integer(count) + b"tQ"


def tensor(count, offset, size, stride):
    arguments = b"(" + storage(count) + integer(offset) + numbers(*size) + numbers(*stride) + b"\x89"
    arguments += name_of("collections", "OrderedDict") + b")Rt"
    return name_of("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def state_dict(value):
    return program(b"}" + text("state_dict") + b"}" + text("embedding.weight") + value + b"ss")


COMMAND = "touch executed"
CALLS = {
    "os.system": lambda: Reduced(os.system, COMMAND),
    "posix.system": lambda: Reduced(os.system, COMMAND),
    "eval": lambda: Reduced(eval, "open('executed', 'w')"),
    "exec": lambda: Reduced(exec, "open('executed', 'w')"),
    "open": lambda: Reduced(open, "executed", "w"),
    "getattr": lambda: Reduced(getattr, "text", "upper"),
    "mkdir": lambda: Reduced(os.mkdir, "executed"),
    "torch.load": lambda: Reduced(torch.load, "other.pt"),
    "_load_from_bytes": lambda: Reduced(torch.storage._load_from_bytes, pickle.dumps(Reduced(os.system, COMMAND))),
    "torch.hub.load": lambda: Reduced(torch.hub.load, "owner/project", "model"),
}
PLACES = {
    "alone": lambda call: call,
    "as weights": lambda call: {"state_dict": call},
    "as a weight": lambda call: {"state_dict": {"embedding.weight": call}},
    "beside weights": lambda call: {"state_dict": {"embedding.weight": torch.zeros(2)}, "extra": [({"deep": call},)]},
    "in an optimizer": lambda call: {"state_dict": {"a": torch.zeros(2)}, "optimizer": {"state": {0: call}}},
    "in a dictionary's attributes": lambda call: attributes(call),
    "as a key": lambda call: [("key", call)],
}


def attributes(call):
    state = collections.OrderedDict(weight=torch.zeros(2))
    state._metadata = call
    return {"state_dict": state}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_calls_are_refused_by_name(call, place, zipped):
    torch.save(PLACES[place](CALLS[call]()), "call.pt", _use_new_zipfile_serialization=zipped)
    refused("call.pt", "it would import", call.rpartition(".")[2])
    with pytest.raises(InputError):
        load_weights("call.pt")
    with pytest.raises(InputError):
        load_training_state("call.pt")


def test_the_calls_would_run_without_protection(tmp_path):
    torch.save(CALLS["exec"](), "call.pt")
    torch.load("call.pt", weights_only=False)
    trace = tmp_path / "executed"
    assert trace.exists()
    trace.unlink()


ordered = name_of("collections", "OrderedDict")
PROGRAMS = {
    "protocol 0": b"cos\nsystem\n(S'touch executed'\ntR.",
    "old instance": program(b"(S'touch executed'\nios\nsystem\n"),
    "object": program(b"(" + name_of("os", "system") + text(COMMAND) + b"o"),
    "extension": program(b"\x82\x01"),
    "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(COMMAND) + b"\x85R.",
    "dotted name": b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + text(COMMAND) + b"\x85R.",
    "memo of gigabytes": program(b"]r\xff\xff\xff\x7f"),
    "bytes of gigabytes": program(b"\x8e" + struct.pack("<Q", 1 << 40)),
    "array of gigabytes": program(b"\x96" + struct.pack("<Q", 1 << 34)),
    "text of gigabytes": program(b"\x8d" + struct.pack("<Q", 1 << 34)),
    "frame of gigabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 34) + b"].",
    "deep key": program(b"}" + b")" + b"\x85" * 1_000_000 + b"Ns"),
    "deep lists": program(b"]" * 5_000 + b"a" * 4_999),
    "empty": b"",
    "nothing on the stack": program(b""),
    "unknown memo": program(b"h\x07"),
    "state of a tensor": state_dict(tensor(2, 0, (2,), (1,)) + b"(" + storage(2) + numbers(1 << 40, 1) + b"tb"),
    "state of a class": program(name_of("flowtron", "Flowtron") + b"N}" + text("state") + b"Ns\x86b"),
    "state of a stand-in": program(ordered + b"}" + text("make") + b"Nsb"),
    "call of a class with arguments": program(name_of("flowtron", "Flowtron") + text("x") + b"\x85R"),
    "storage of another type": program(
        b"(" + text("storage") + name_of("torch", "Size") + text("0") + text("cpu") + integer(1) + b"tQ"
    ),
    "identifier of text": program(text("storage") + b"Q"),
    "no container": program(b"K\x01"),
    "unhashable key": program(b"}]Ns"),
    "self-made tuple size": state_dict(tensor(2, 0, (2,), (1, 1))),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_are_refused(case):
    contents = {"0": b"\0" * 8}
    refused(archive(PROGRAMS[case], contents))
    head = pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    Path("stream.pt").write_bytes(head + PROGRAMS[case] + pickle.dumps(["0"], 2) + struct.pack("<q", 2) + b"\0" * 8)
    refused("stream.pt")


SHAPES = {
    "beyond the storage": (2, 0, (3,), (1,)),
    "offset beyond the storage": (2, 1, (2,), (1,)),
    "negative offset": (2, -1, (1,), (1,)),
    "negative size": (2, 0, (-1,), (1,)),
    "negative stride": (2, 1, (2,), (-1,)),
    "a terabyte of one number": (2, 0, (1 << 38,), (0,)),
    "many dimensions": (2, 0, (1,) * 70, (1,) * 70),
    "product that overflows": (2, 0, (1 << 40, 1 << 40), (1, 1)),
    "declared without content": (1 << 40, 0, (1 << 40,), (1,)),
    "storage larger than declared": (1, 0, (1,), (1,)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_sizes_that_are_not_there_are_refused(case):
    refused(archive(state_dict(tensor(*SHAPES[case])), {"0": b"\0" * 8}))
    head = pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", 2) + b"\0" * 8
    Path("stream.pt").write_bytes(head + state_dict(tensor(*SHAPES[case])) + tail)
    refused("stream.pt")


def test_many_views_of_one_storage_are_refused():
    content = b"\0" * 40_000
    views = b"".join(text(f"w{i}") + tensor(10_000, 0, (10_000,), (1,)) + b"s" for i in range(2_000))
    refused(archive(program(b"}" + text("state_dict") + b"}" + views + b"s"), {"0": content}), "many times the space")


def test_shared_values_do_not_multiply():
    # Thirty lists, each of two references to the one before: a billion values to whoever walks them all.
    laughs = b"]q\0" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(30))
    refused(archive(program(laughs)))
    module = name_of("torch.nn.modules.container", "Sequential") + b")\x81q\0"
    for i in range(30):
        pair = b"}(" + text("a") + b"h" + bytes([i]) + text("b") + b"h" + bytes([i]) + b"u"
        module = module + name_of("torch.nn.modules.container", "Sequential") + b")\x81q" + bytes([i + 1])
        module += b"}" + text("_modules") + pair + b"sb"
    refused(archive(program(b"}" + text("model") + module + b"s")))


# Fifty tuples, each of two references to the one before: 2⁵⁰ values to whoever hashes or prints the last one.
ENDLESS = b")q\0" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(50))
HELD = b"}" + text("tuples") + b"](" + ENDLESS + b"es"  # a dictionary that holds them, to which keys are added
KEYS = {
    "of an item": HELD + b"h2Ns",
    "of items": HELD + b"(h2Nu",
    "in a set": HELD + text("set") + b"\x8f(h2\x90s",
    "in a set of a list": HELD + text("set") + name_of("builtins", "set") + b"](h2e\x85Rs",
    "in a dictionary of pairs": HELD + text("pairs") + ordered + b"](](h2Nee\x85Rs",
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_that_are_hashed_without_end_are_refused(case):
    refused(archive(program(KEYS[case])), "a key is a tuple")
    with pytest.raises(InputError, match="a key is a tuple"):
        load_training_state("hostile.pt")


def test_streams_with_values_without_end_are_refused():
    magic, held = pickle.dumps(LEGACY_MAGIC, 2), program(b"](" + ENDLESS + b"e")
    system = pickle.dumps({"little_endian": True}, 2)
    for parts in ([held, system], [pickle.dumps(1001, 2), system, pickle.dumps({}, 2), held]):
        Path("stream.pt").write_bytes(magic + b"".join(parts))
        refused("stream.pt")


@pytest.mark.parametrize("name", [("builtins", "set"), ("torch", "Size")], ids=str)
def test_copies_of_one_list_are_refused(name):
    numbers = b"".join(b"M" + struct.pack("<H", i) for i in range(1_000))
    copies = b"](" + name_of(*name) + b"q\1" + b"h\1h\0\x85R" * 10_000 + b"e"
    refused(archive(program(b"}" + text("list") + b"]q\0(" + numbers + b"es" + text("copies") + copies + b"s")))


def good_archive():
    torch.save({"state_dict": {"embedding.weight": torch.zeros(64)}}, "good.pt")
    with zipfile.ZipFile("good.pt") as file:
        return {name: file.read(name) for name in file.namelist()}


def rewritten(change, **options):
    entries = list(good_archive().items())
    with zipfile.ZipFile("hostile.pt", "w", **options) as file:
        for name, content in change(entries):
            file.writestr(name, content)
    return "hostile.pt"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "name", ["../executed", "/executed", "good/../../executed", "good\\..\\executed", "other/data/9"]
)
def test_names_outside_the_folder_are_refused(name):
    refused(rewritten(lambda entries: [*entries, (name, b"x")]), "outside its folder")
    refused(rewritten(lambda entries: [(name, b"x"), *entries]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused():
    refused(rewritten(lambda entries: [*entries, entries[0]]), "two entries")


def test_compressed_entries_are_refused():
    refused(rewritten(lambda entries: entries, compression=zipfile.ZIP_DEFLATED), "compressed")
    bomb = archive(program(b"N"), {"0": b"\0" * (1 << 28)}, compression=zipfile.ZIP_DEFLATED)
    assert Path(bomb).stat().st_size < 1 << 20
    refused(bomb, "larger than itself")
    with pytest.raises(InputError, match="larger than itself"):
        load_training_state(bomb)
    refused(archive(program(b"N"), {"0": os.urandom(1 << 16)}, compression=zipfile.ZIP_DEFLATED), "compressed")


def test_entries_that_overlap_are_refused():
    content = b"\0" * (1 << 20)
    data = bytearray(Path(archive(program(b"N"), {"0": content})).read_bytes())
    end = data.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", data, end + 12)
    directory = data[start : start + size]
    # The last record of the directory stands for the big entry; each copy of it is a megabyte more.
    last = directory[directory.rindex(b"PK\x01\x02") :]
    copies = b"".join(bytes(last).replace(b"data/0", b"data/%c" % letter) for letter in b"abcdefgh")
    struct.pack_into("<HHI", data, end + 8, 11, 11, size + len(copies))
    Path("overlap.pt").write_bytes(data[:end] + copies + data[end:])
    refused("overlap.pt", "larger than itself")


def test_other_archives_are_refused():
    refused(rewritten(lambda entries: [*entries, ("good/constants.pkl", b"x")]), "torch.save")
    refused(rewritten(lambda entries: [e for e in entries if "data.pkl" not in e[0]]), "torch.save")
    refused(rewritten(lambda entries: [(n, b"big" if "byteorder" in n else c) for n, c in entries]), "little-endian")
    Path("text.pt").write_text("<html>404</html>")
    refused("text.pt")
    Path("empty.pt").write_bytes(b"")
    refused("empty.pt")
    with pytest.raises(InputError, match="no such file"):
        convert("absent.pt", "out")
    with pytest.raises(InputError, match="a folder"):
        convert(".", "out")


def test_a_changed_byte_in_the_numbers_is_noticed():
    good_archive()
    data = bytearray(Path("good.pt").read_bytes())
    data[data.index(b"\0" * 200) + 100] = 1
    Path("changed.pt").write_bytes(data)
    refused("changed.pt", "truncated, altered")


@pytest.mark.parametrize("name", ["flowtron_published", "flowtron_published_oldzip", "flowtron_training"])
def test_truncated_files_are_refused(name):
    content = (DATA / f"{name}.pt").read_bytes()
    for size in range(0, len(content), 1024):
        Path("short.pt").write_bytes(content[:size])
        with pytest.raises(InputError, match=r"^short\.pt: [^\n]*\.$"):
            convert("short.pt", "out")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused(seed):
    draw = random.Random(seed)
    heads = [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."]
    for size in [draw.randrange(1, 1 << draw.randrange(2, 18)) for _ in range(20)]:
        Path("noise.pt").write_bytes(draw.choice(heads) + draw.randbytes(size))
        refused("noise.pt")


@pytest.mark.parametrize("name", ["flowtron_published", "flowtron_published_oldzip"])
def test_changed_bytes_never_do_more_than_change_data(name):
    content = (DATA / f"{name}.pt").read_bytes()
    draw = random.Random(7)
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(min(len(content), 20_000))] = draw.randrange(256)
        Path("changed.pt").write_bytes(changed)
        try:
            value = read_file("changed.pt")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(value, dict)


def weights(name="flowtron_published"):
    return dict(read_file(DATA / f"{name}.pt")["state_dict"])


WRONG = {
    "a weight is missing": lambda w: w.pop("flows.0.lstm.weight_hh_l1"),
    "a weight is too many": lambda w: w.update({"flows.0.surprise": torch.zeros(1)}),
    "a weight of an unknown step": lambda w: w.update({"flows.7.conv.bias": torch.zeros(160)}),
    "a step of enormous number": lambda w: w.update({"flows.999999999.conv.bias": torch.zeros(160)}),
    "a transposed weight": lambda w: w.update(
        {"flows.0.lstm.weight_ih_l0": w["flows.0.lstm.weight_ih_l0"].T.contiguous()}
    ),
    "a flat weight": lambda w: w.update({"flows.0.conv.weight": torch.zeros(160)}),
    "a layer as wide as memory": lambda w: w.update(
        {"flows.0.attention_layer.query.linear_layer.weight": torch.zeros(1, 1_000_000)}
    ),
    "an empty layer of no size": lambda w: w.update({"speaker_embedding.weight": torch.zeros(0, 1 << 40)}),
    "only numbers": lambda w: (w.clear(), w.update({"weight": torch.zeros(3)})),
    "no weights": lambda w: w.clear(),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_make_no_model_are_refused(case):
    changed = weights()
    WRONG[case](changed)
    torch.save({"state_dict": changed}, "wrong.pt")
    refused("wrong.pt")


def test_text_of_the_file_cannot_forge_the_message():
    names = io.BytesIO()
    torch.save({"state_dict": {"evil\nflowtron: all is well\x1b[2J" * 50: torch.zeros(1)}}, names)
    Path("names.pt").write_bytes(names.getvalue())
    refused("names.pt")
