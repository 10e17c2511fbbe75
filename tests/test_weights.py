import json

import pytest
import torch
from reference import images, small
from safetensors import safe_open
from safetensors.torch import save_file

import dnat
from dnat.networks import load_weights
from dnat.networks.weights import tensor_file


def trained(seed=5):
    return dnat.build("resnet8", width=4, seed=seed)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("form", ["safetensors", "pt", "wrapped.pth", "parallel.pt", "folder"])
def test_weights_of_any_usual_file(form, tmp_path):
    source, network = trained(), trained(seed=1)
    state = source.state_dict()
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "folder":
        path.mkdir()
        save_file(state, path / "network.safetensors")
    else:
        wrapped = {"wrapped.pth": {"state_dict": state, "epoch": 3}}
        parallel = {"parallel.pt": {f"module.{k}": v for k, v in state.items()}}
        torch.save((wrapped | parallel).get(form, state), path)
    assert not same(source, network)
    assert load_weights(network, str(path)) == []
    assert same(source, network)
    assert torch.equal(source.eval()(images()), network.eval()(images()))


def test_a_classifier_for_other_classes_starts_afresh(tmp_path):
    save_file(trained().state_dict(), tmp_path / "w.safetensors")
    network = dnat.build("resnet8", width=4, num_classes=3, seed=1)
    before = network.fc.weight.clone()
    notes = load_weights(network, str(tmp_path / "w.safetensors"))
    assert notes == ["fc was trained for 10 classes, not 3: it starts with fresh weights"]
    assert torch.equal(network.fc.weight, before)
    assert torch.equal(network.conv1.weight, trained().conv1.weight)


NAMES = [f"c{i}" for i in range(10)]


@pytest.mark.parametrize("told", [None, "", "not JSON", "[1]", '{"classes": 3}', "{}"])
def test_what_another_program_says_of_classes_is_left_alone(told, tmp_path):
    save_file(trained().state_dict(), tmp_path / "w.safetensors", None if told is None else {"preprocess": told})
    network = trained(seed=1)
    assert load_weights(network, str(tmp_path / "w.safetensors"), classes=NAMES[::-1]) == []
    assert same(network, trained())


def test_classes_are_found_by_name_in_a_file_and_in_a_run(tmp_path):
    path = tmp_path / "network.safetensors"
    save_file(trained().state_dict(), path, {"preprocess": json.dumps({"classes": NAMES})})
    for source in (path, tmp_path):
        network = trained(seed=1)
        (note,) = load_weights(network, str(source), classes=NAMES[::-1])
        assert note.startswith("fc was trained for the classes c0, c1")
        assert torch.equal(network.fc.weight, trained().fc.weight.flip(0))
        save_file(trained().state_dict(), path)  # of a run the record tells
        (tmp_path / "record.json").write_text(json.dumps({"classes": NAMES}))


def test_a_broken_record_is_no_run_without_classes(tmp_path):
    save_file(trained().state_dict(), tmp_path / "network.safetensors")
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"record.json cannot be read"):
        load_weights(trained(seed=1), str(tmp_path), classes=NAMES)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file(trained().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"not those of this network; missing: stem.weight, .* unknown: "):
        load_weights(small("residual"), str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"other shapes: conv1.weight \(4, 3, 3, 3\) for \(8, 3, 3, 3\)"):
        load_weights(dnat.build("resnet8", width=8, seed=0), str(tmp_path / "w.safetensors"))


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_no_code_of_a_file_is_run(tmp_path, capsys):
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_weights(trained(), str(tmp_path / "evil.pt"))
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "cannot be read"), (b"junk" * 9, "cannot be read"), (None, "there is no file")]
)
def test_damaged_and_missing_files_are_named(content, words, tmp_path):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        load_weights(trained(), str(path))
    assert str(path) in str(error.value)


def test_a_file_without_a_table_of_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no state_dict"):
        load_weights(trained(), str(tmp_path / "w.pt"))


def test_torchvisions_weights_are_taken_where_they_are_at_hand(tmp_path, monkeypatch):
    network = dnat.build("torchvision:squeezenet1_1", seed=0)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        ValueError, match=r"squeezenet1_1-.*\.pth is missing: put https://.* there, or add --download"
    ):
        load_weights(network, "DEFAULT", "torchvision:squeezenet1_1")
    with pytest.raises(ValueError, match="unknown weights of squeezenet1_1 'DEFAUL'; did you mean 'DEFAULT'"):
        load_weights(network, "DEFAUL", "torchvision:squeezenet1_1")


def test_timms_networks_by_name(timm):
    network = dnat.build("timm:resnet10t", num_classes=7, seed=3)
    again = dnat.build("timm:resnet10t", num_classes=7, seed=3)
    assert same(network, again)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ValueError, match="unknown timm network 'resnet10x'; did you mean"):
        dnat.build("timm:resnet10x")


def test_timm_is_asked_for_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'dnat\[timm\]'"):
        dnat.build("timm:resnet10t")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("conv1.weight", lambda t: t.long(), r"conv1\.weight is torch\.int64, which is no torch\.float32"),
        ("fc.bias", lambda t: t * float("nan"), r"fc\.bias holds NaN or infinity"),
        ("bn1.running_var", lambda t: t + float("inf"), r"bn1\.running_var holds NaN or infinity"),
    ],
)
def test_weights_of_other_kinds_and_not_finite_ones_are_refused(name, change, words, tmp_path):
    state = trained().state_dict()
    save_file(state | {name: change(state[name])}, tmp_path / "w.safetensors")
    network = trained(seed=1)
    with pytest.raises(ValueError, match=rf"w\.safetensors: {words}"):
        load_weights(network, str(tmp_path / "w.safetensors"))
    assert same(network, trained(seed=1))


def test_weights_of_half_precision_are_read(tmp_path):
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in trained().state_dict().items()},
        tmp_path / "w.safetensors",
    )
    network = trained(seed=1)
    assert load_weights(network, str(tmp_path / "w.safetensors")) == []
    assert torch.equal(network.conv1.weight, trained().conv1.weight.half().float())


def test_a_file_of_tensors_has_the_same_bytes_whatever_the_order_of_its_texts(tmp_path):
    tensors = {"b": torch.arange(5, dtype=torch.uint8), "a": torch.randn(2, 3)}
    told = {f"né{i}": f'"{i}"\n' for i in range(12)}
    path = tmp_path / "tensors.safetensors"
    path.write_bytes(content := tensor_file(tensors, told))
    assert content == tensor_file(tensors, dict(reversed(told.items())))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert [*header["__metadata__"]] == sorted(told)  # by chance once in 479 million times
    with safe_open(path, "pt") as file:
        assert file.metadata() == told
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    save_file(tensors, plain := tmp_path / "plain.safetensors")
    assert tensor_file(tensors, {}) == plain.read_bytes()
