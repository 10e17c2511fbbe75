"""Every file is bound to its run: what was changed is named before it is used, what can be made again is."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from reference import unsealed

from dnat import Config
from dnat.checkpoints import CorruptError
from dnat.data.files import Tree
from dnat.errors import DataError
from dnat.files import digest_of, read_sealed, seal_of, sealed, set_aside, write_json
from dnat.lab.cli import cli
from dnat.lab.report import gather
from dnat.lab.runs import restore, run
from dnat.records import Records
from dnat.rundir import RunFiles, read_job
from dnat.settings import Job
from dnat.training import Interrupted

pytestmark = pytest.mark.filterwarnings("ignore:lr_theta")
SHORT = {"epochs": 3, "architecture_epochs": 2, "batch_size": 30, "threads": 1, "latency_batch": 2}
TINY = {"network_options": {"width": 2}, "train_limit": 60, "test_limit": 40, "image_size": 8}


def job(**options):
    return Job(network="resnet8", **TINY, config=Config(**SHORT | options))


def stopped(directory, step=5, **options):
    with pytest.raises(Interrupted):
        run(job(**options), directory, stop=lambda progress: progress.step == step)
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bound")
    run(job(), folder / "run")
    stopped(folder / "part")
    return folder


@pytest.fixture
def done(finished, tmp_path):
    return shutil.copytree(finished / "run", tmp_path / "run")


@pytest.fixture
def part(finished, tmp_path):
    return shutil.copytree(finished / "part", tmp_path / "part")


def dnat(*words):
    result = CliRunner().invoke(cli, [str(w) for w in words], standalone_mode=False)
    return getattr(result.exception, "exit_code", 1 if result.exception else 0), result.output, result.exception


def flip(path, at=-41):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


# --- finished runs


@pytest.mark.parametrize("how", [("evaluate",), ("export", "--to", "safetensors", "--no-verify")])
def test_a_flipped_bit_of_the_weights_is_refused_or_taken_with_a_word(how, done, tmp_path):
    words = [how[0], done, *how[1:], *(("--out", tmp_path / "out") if how[0] == "export" else ())]
    assert dnat(*words)[0] == 0
    flip(done / "network.safetensors")
    code, _, error = dnat(*words)
    assert code == 65
    assert "network.safetensors is not what the run wrote" in str(error)
    code, said, _ = dnat(*words, "--accept-changes")
    assert code == 0
    assert "network.safetensors is not what the run wrote (another digest); taken as it is" in said


def test_weights_of_a_run_without_digests_are_checked_by_the_records_own(done):
    record = json.loads((done / "record.json").read_text())
    write_json(done / "record.json", unsealed(record))
    restore(done)
    flip(done / "network.safetensors")
    with pytest.raises(DataError, match="does not hold the weights of the run"):
        restore(done)
    told = []
    run(job(), done, notify=told.append)
    assert told == ["the run is of an older dnat, which kept no digests: what was changed since is not noticed"]


def test_a_config_that_was_edited_is_told_by_its_settings(done):
    text = (done / "config.toml").read_text()
    (done / "config.toml").write_text("# mine\n" + text.replace("lr = 0.025\n", "lr = 0.065\n"))
    with pytest.raises(DataError, match=r"lr 0.065 \(there\) / 0.025 \(record.json\)"):
        RunFiles(done).record()
    (done / "config.toml").write_text(f'# mine\ndata_root = "/moved"\n{text}')  # where data lie is free
    assert RunFiles(done).record()["job"]["lr"] == 0.025


def test_each_file_of_a_record_is_checked(done, finished):
    files = json.loads((done / "record.json").read_text())["files"]
    assert {"config.toml", "network.safetensors", "architecture.json", "predictions.safetensors"} < files.keys()
    for name, wanted in files.items():
        assert digest_of(done / name) == wanted
        flip(done / name, 9)
        with pytest.raises(DataError, match=name):
            RunFiles(done).check(name)
        (done / name).unlink()
        with pytest.raises(DataError, match=f"{name} is gone"):
            RunFiles(done).check(name)
        shutil.copy(finished / "run" / name, done / name)
        RunFiles(done).check(name)


def test_every_flipped_bit_of_a_record_is_found(done):
    """But in the white space between its entries, which holds nothing."""
    path = done / "record.json"
    content, whole = path.read_bytes(), json.loads(path.read_text())
    for place in range(0, 8 * len(content), 101):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = RunFiles(done).record()
        except DataError:
            continue
        assert found.items() <= whole.items()


def test_a_report_leaves_out_what_is_not_the_runs(done):
    with open(done / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4}\n')
    (done / "environment.json").unlink()
    report = gather([done])
    assert [note.partition(" is ")[0].rpartition("/")[2] for note in report.notes] == [
        "metrics.jsonl",
        "environment.json",
    ]
    assert report.runs[0].metrics == ()


def test_a_deleted_record_trains_nothing_again_unasked(done):
    whole = RunFiles(done).record()
    (done / "record.json").unlink()
    with pytest.raises(DataError, match=r"was finished, but its record.json is gone: .*--begin-again"):
        run(job(), done)
    told = []
    again = run(job(), done, anew=True, notify=told.append)
    assert again["results"] == whole["results"]
    assert "record.json is gone: the run begins again" in told[0]


def test_a_damaged_record_is_set_aside_where_the_run_is_to_begin_again(done):
    whole = RunFiles(done).record()
    flip(done / "record.json")
    with pytest.raises(DataError, match=r"record\.json"):
        run(job(), done)
    assert run(job(), done, anew=True)["results"] == whole["results"]
    assert (done / "record.json.corrupt").exists()
    assert run(job(), done, anew=True) == RunFiles(done).record()  # which is whole: nothing begins again


def test_times_that_were_measured_alone_belong_to_their_record(done, tmp_path):
    files = RunFiles(done)
    alone = files.record()["latency"] | {"alone": True}
    files.write_latency(alone)
    assert files.record()["latency"] == alone
    told = []
    for damage in ("{", json.dumps({"before": 1, "sha256": "0"}), json.dumps(sealed(alone | {"of": "another"}))):
        files.path("latency.json").write_text(damage)
        assert RunFiles(done, notify=told.append).record()["latency"] != alone
    assert len(told) == 3
    assert all("latency.json" in text and "the run itself measured are taken" in text for text in told)


# --- runs that go on


def test_an_edited_config_is_refused_by_the_checkpoints(part, finished):
    path = part / "config.toml"
    path.write_text(path.read_text().replace("lr = 0.025\n", "lr = 0.065\n"))
    with pytest.raises(DataError, match=r"lr 0.025 \(checkpoint-\d+.ckpt\) / 0.065 \(config.toml\)") as error:
        run(read_job(part), part)
    assert error.value.exit_code == 65
    record = run(read_job(part), part, accept_changes=True)
    assert "lr 0.025" in record["accepted"][0]
    assert record["results"] != RunFiles(finished / "run").record()["results"]


@pytest.mark.parametrize("damage", ["cut", "edited", "newline", "gone", "folder"])
def test_a_log_that_was_changed_is_written_anew(damage, part, finished):
    log, told = part / "metrics.jsonl", []
    text = log.read_text()
    log.unlink()
    if damage == "folder":
        log.mkdir()
    elif damage != "gone":
        log.write_text({"cut": text[:20], "edited": text.replace("0.", "1.", 1), "newline": text[:-1]}[damage])
    run(job(), part, notify=told.append)
    assert any("metrics.jsonl is" in t and "anew" in t for t in told)
    whole = [json.loads(line) for line in (finished / "run" / "metrics.jsonl").read_text().splitlines()]
    times = {"seconds", "images_per_second", "memory"}
    assert [{k: v for k, v in row.items() if k not in times} for row in RunFiles(part).rows()] == [
        {k: v for k, v in row.items() if k not in times} for row in whole
    ]


@pytest.mark.parametrize("name", ["status.json", "environment.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"[" * 99_999])
def test_a_damaged_side_file_is_set_aside(name, content, part):
    (part / name).write_bytes(content)
    told = []
    with Records.open(part, job(), notify=told.append):
        pass
    assert len(told) == 1
    assert f"{name}.corrupt, and written anew" in told[0]
    assert read_sealed(part / name)
    assert (part / f"{name}.corrupt").read_bytes() == content


def test_checkpoints_that_were_deleted_are_missed(part):
    with open(part / "metrics.jsonl") as file:
        assert len(file.readlines()) == 2
    for path in part.glob("*.ckpt"):
        path.unlink()
    with pytest.raises(CorruptError, match=r"no checkpoint is left, but metrics.jsonl has 2 rows.*--begin-again"):
        run(job(), part)


def test_what_is_kept_for_a_run_is_bound_to_its_settings(tmp_path):
    told = []
    with Records.open(tmp_path / "one", job()) as records:
        assert records.kept("search.json") is None
        records.keep("search.json", {"best": 0.5})
        assert records.kept("search.json") == {"best": 0.5}
        text = records.path("search.json").read_text()
        records.path("search.json").write_text(text.replace("0.5", "0.7", 1))
    with Records.open(tmp_path / "one", job(), notify=told.append) as records:
        assert records.kept("search.json") is None
        assert records.kept("search.json") is None  # told of once
    with Records.open(tmp_path / "other", job(lr=0.5)) as records:
        records.keep("search.json", {"best": 0.25})
    shutil.copy(tmp_path / "other" / "search.json", tmp_path / "one")
    with Records.open(tmp_path / "one", job(), notify=told.append) as records:
        assert records.kept("search.json") is None
        write_json(records.path("search.json"), {"best": 1})  # of an older dnat
        assert records.kept("search.json") == {"best": 1}
    assert ["its digest differs" in told[0], "other settings" in told[1], len(told)] == [True, True, 2]


# --- data


def pictures(folder, count=12):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([ord(name), i]).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.bmp")
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_pictures_that_were_exchanged_or_deleted_are_told_of(streaming, tmp_path):
    root = pictures(tmp_path / "pictures")
    # Without workers, each of which would import torch for every call; test_streaming has them.
    config = Config(**SHORT | {"batch_size": 8, "streaming": streaming, "workers": 0 if streaming else None})
    j = Job(network="resnet8", network_options={"width": 2}, data="folder", data_root=str(root), image_size=8)
    j = j.but(config=config)
    run(j, tmp_path / "done")
    with pytest.raises(Interrupted):
        run(j, tmp_path / "part", stop=lambda progress: progress.step == 2)
    assert dnat("evaluate", tmp_path / "done")[0] == 0
    kept = (root / "a" / "03.bmp").read_bytes()
    for damage in ("exchanged", "deleted"):
        if damage == "exchanged":
            (root / "a" / "03.bmp").write_bytes((root / "b" / "03.bmp").read_bytes())  # of the same size
        else:
            (root / "a" / "03.bmp").unlink()
        code, _, error = dnat("evaluate", tmp_path / "done")
        assert (code, "is not the data of the run" in str(error)) == (65, True), damage
        code, said, _ = dnat("evaluate", tmp_path / "done", "--accept-changes")
        assert (code, "is not the data of the run" in said) == (0, True), damage
        with pytest.raises(DataError, match=r"other images .*--accept-changes"):
            run(j, tmp_path / "part")
    (root / "a" / "03.bmp").write_bytes(kept)
    assert run(j, tmp_path / "part")["results"] == RunFiles(tmp_path / "done").record()["results"]


def test_the_digest_of_many_pictures_reads_a_fixed_sample(tmp_path, monkeypatch):
    root = pictures(tmp_path / "pictures")
    monkeypatch.setattr("dnat.data.files.SAMPLED", 12)
    tree = Tree.open(root)
    files = tree.files(tree.pictures(), 8)
    before, seen = files.digest(), 0
    for i in range(len(files)):
        path = root / files.name(i)
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        seen += files.digest() != before
        path.write_bytes(whole)
    assert (len(files), seen) == (24, 12)


# --- seals


def test_a_seal_is_of_what_a_table_holds(tmp_path):
    table = {"b": (1, 2.5), "a": {"x": None, "y": "ü"}}
    assert sealed(table)["sha256"] == seal_of({"a": {"y": "ü", "x": None}, "b": [1, 2.5]})
    write_json(tmp_path / "x", sealed(table))
    assert read_sealed(tmp_path / "x") == {"b": [1, 2.5], "a": {"x": None, "y": "ü"}}
    for i in range(3):
        (tmp_path / "x").write_text(str(i))
        assert set_aside(tmp_path / "x") == ["x.corrupt", "x.2.corrupt", "x.3.corrupt"][i]


# --- all of it


@pytest.fixture
def torture(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    yield importlib.import_module("torture_files")
    sys.modules.pop("torture_files", None)


def test_no_damage_to_any_file_is_silent(torture, tmp_path):
    """A fortieth of `python benchmarks/torture_files.py`."""
    counted, failed = torture.torture(tmp_path, flips=4, cuts=2, share=1 / 40, seed=1)
    assert failed == []
    assert sum(counted.values()) > 20
