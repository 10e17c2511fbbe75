import io
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from dnat import checkpoints, files, rundir
from dnat.checkpoints import CorruptError, pack, unpack
from dnat.files import atomic_write
from dnat.lab.labels import label as label_of
from dnat.records import LockedError, Records
from dnat.rundir import RunFiles, check_name, read_job
from dnat.settings import Config, Job, run_name


def job(**options):
    return Job(network="resnet8", config=Config(threads=1, epochs=3, **options))


def state(step=1):
    return {"step": step, "weights": torch.full((64,), float(step)), "words": ["a", {"b": 1.5}]}


def test_a_container_gives_back_what_it_was_given(tmp_path):
    atomic_write(tmp_path / "x", pack(state(7), step=7, metrics_bytes=0))
    header, found = unpack(tmp_path / "x")
    assert (header["step"], header["format"]) == (7, 1)
    assert torch.equal(found["weights"], state(7)["weights"])
    assert found["words"] == ["a", {"b": 1.5}]


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    content = pack(state(), step=1, metrics_bytes=0)
    path = tmp_path / "x"
    for i in [*range(0, 60), *range(60, len(content), 13)]:
        damaged = bytearray(content)
        damaged[i] ^= 1 << (i % 8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptError):
            unpack(path)
    for size in [0, 1, 7, 8, 15, 16, 40, *range(60, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(CorruptError):
            unpack(path)


class Malicious:
    def __reduce__(self):
        return (os._exit, (13,))


def container(payload, **header):
    import hashlib

    header |= {
        "format": 1,
        "length": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
        "metrics_bytes": 0,
    }
    text = json.dumps(header).encode()
    front = checkpoints.MAGIC + struct.pack("<Q", len(text)) + text
    return front + hashlib.sha256(front).digest() + payload


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    buffer = io.BytesIO()
    torch.save({"x": Malicious()}, buffer, pickle_module=pickle)
    (tmp_path / "x").write_bytes(container(buffer.getvalue()))
    with pytest.raises(CorruptError, match="something else than tensors"):
        unpack(tmp_path / "x")


def test_compressed_data_are_refused(tmp_path):
    buffer, small = io.BytesIO(), io.BytesIO()
    torch.save({"x": torch.zeros(1_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    (tmp_path / "x").write_bytes(container(small.getvalue()))
    with pytest.raises(CorruptError, match="compressed"):
        unpack(tmp_path / "x")


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 3)
    content = pack(state(), step=1)
    monkeypatch.setattr(checkpoints, "FORMAT", 1)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="written by format 3, this is 1"):
        unpack(tmp_path / "x")


def test_a_file_is_synced_moved_and_its_directory_synced_in_that_order(tmp_path, monkeypatch):
    seen = []
    fsync, replace = os.fsync, os.replace

    def spy_sync(descriptor):
        seen.append("sync directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        fsync(descriptor)

    def spy_replace(a, b):
        seen.append("move")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "replace", spy_replace)
    atomic_write(tmp_path / "x", b"content")
    assert seen == ["sync file", "move", "sync directory"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files under /proc")
def test_what_is_saved_is_closed(tmp_path):
    """A descriptor that stays open at each checkpoint ends a long run at the system's limit, usually 1024."""
    with Records.open(tmp_path / "run", job()) as records:
        records.save(1, state(1))
        before = len(os.listdir("/proc/self/fd"))
        for step in range(2, 12):
            records.save(step, state(step))
            records.write_json("x.json", {"step": step})
        assert len(os.listdir("/proc/self/fd")) == before


def test_older_checkpoints_go_only_when_the_new_one_is_safe(tmp_path, monkeypatch):
    with Records.open(tmp_path / "run", job()) as records:
        for step in range(1, 5):
            records.save(step, state(step))
        assert sorted(p.name for p in records.path().glob("*.ckpt")) == [
            "checkpoint-000000003.ckpt",
            "checkpoint-000000004.ckpt",
        ]
        monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "no space left")))
        with pytest.raises(OSError, match="no space"):
            records.save(5, state(5))
        monkeypatch.undo()
        assert not list(records.path().glob(".*.tmp"))
        assert records.newest()[0] == 4


def test_a_damaged_checkpoint_is_passed_over_and_told_of(tmp_path):
    with Records.open(tmp_path / "run", job()) as records:
        records.log({"epoch": 1})
        records.save(1, state(1))
        records.log({"epoch": 2})
        records.save(2, state(2))
        path = records.path("checkpoint-000000002.ckpt")
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        os.utime(records.path("checkpoint-000000001.ckpt"), (1, 1))  # clocks have no say
        step, found = records.newest()
        assert step == 1
        assert found["step"] == 1
        assert "checksum does not match; an older checkpoint is used" in records.notices[0]
        assert records.path("checkpoint-000000002.ckpt.corrupt").exists()
        assert records.metrics() == [{"epoch": 1}]  # cut back to the moment of that checkpoint


def test_metrics_without_any_checkpoint_are_emptied(tmp_path):
    with Records.open(tmp_path / "run", job()) as records:
        records.log({"epoch": 1})
        assert records.newest() is None
        assert records.metrics() == []
        with pytest.raises(ValueError, match="not JSON compliant"):
            records.log({"loss": float("nan")})


CHILD = """
import sys, torch
from dnat.settings import Config, Job
from dnat.records import Records
job = Job(network="resnet8", config=Config(threads=1, epochs=3))
with Records.open(sys.argv[1], job) as records:
    newest = records.newest()
    step = newest[0] if newest else 0
    assert newest is None or newest[1]["weights"][0] == step
    print("open", step, flush=True)
    while True:
        step += 1
        records.save(step, {"weights": torch.full((100_000,), float(step))})
        print(step, flush=True)
"""


def child(path):
    return subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_kill_9_while_saving_loses_nothing_that_was_acknowledged(tmp_path):
    acknowledged = 0
    for i in range(6):
        process = child(tmp_path / "run")
        first = process.stdout.readline().split()
        assert first[0] == "open"
        assert int(first[1]) >= acknowledged
        time.sleep(0.05 + 0.037 * i)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        acknowledged = max([acknowledged, *map(int, lines)])
    with Records.open(tmp_path / "run", job()) as records:
        assert records.newest()[0] >= acknowledged > 0
        assert not records.notices
        assert not list(records.path().glob(".*.tmp"))


def test_one_process_at_a_time_and_no_stale_lock(tmp_path):
    process = child(tmp_path / "run")
    process.stdout.readline()
    with pytest.raises(LockedError, match=f"is in use by pid {process.pid} on .* since 20"):
        Records.open(tmp_path / "run", job())
    process.kill()
    process.wait()
    process.stdout.close()
    Records.open(tmp_path / "run", job()).close()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    records = Records.open(tmp_path / "run", job())
    records.save(1, state(1))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 10, 500, 2000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
            with pytest.raises(OSError, match="large"):
                records.save(2, {"weights": torch.zeros(10_000)})
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            assert records.newest()[0] == 1
            assert not list(records.path().glob(".*.tmp"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
        records.close()


def test_another_configuration_is_refused_with_the_keys(tmp_path):
    Records.open(tmp_path / "run", job()).close()
    with pytest.raises(
        ValueError, match=r"other settings: lr 0.025 \(there\) / 0.5 \(now\), seed 0 \(there\) / 3"
    ):
        Records.open(tmp_path / "run", job(lr=0.5, seed=3))
    there = job().config.but(workers=3, streaming=True)
    moved = Job(network="resnet8", data_root="/elsewhere", config=there)
    Records.open(tmp_path / "run", moved).close()  # where the data lie and who reads them does not count


def test_other_directories_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and not a run directory"):
        Records.open(tmp_path / "mine", job())
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    # Beside what a run that was killed may leave behind it is as precious.
    (tmp_path / "mine" / ".lock").touch()
    (tmp_path / "mine" / ".config.toml.7.tmp").touch()
    with pytest.raises(ValueError, match="is not empty and not a run directory"):
        Records.open(tmp_path / "mine", job())
    assert len(list((tmp_path / "mine").iterdir())) == 3
    (tmp_path / "mine" / "thesis.tex").unlink()
    Records.open(tmp_path / "mine", job()).close()


def test_a_run_says_which_commit_made_it(tmp_path):
    with Records.open(tmp_path / "run", job()) as records:
        code = records.read_json("environment.json")["code"]
    git = ["git", "-C", str(Path(rundir.__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True).stdout.strip()
    assert code == (f"{commit[:12]}{'+' if changed else ''}" if commit else None)


def test_a_run_is_done_when_its_record_is_there(tmp_path, monkeypatch):
    with Records.open(tmp_path / "run", job()) as records:
        records.save(1, state())
        write = files.atomic_write

        def fails(path, content):
            if Path(path).name == "record.json":
                raise OSError(28, "no space left")
            write(path, content)

        monkeypatch.setattr(files, "atomic_write", fails)
        with pytest.raises(OSError, match="no space"):
            records.finish({"results": 1})
        assert not records.is_done()
        assert records.newest() is not None  # and can still be finished
        monkeypatch.undo()
        records.finish({"results": 1})
        assert records.is_done()
        assert records.record() == {"results": 1}
        assert not list(records.path().glob("*.ckpt"))
        assert records.read_json("status.json")["state"] == "done"


def test_another_environment_is_noticed(tmp_path):
    with Records.open(tmp_path / "run", job()) as records:
        there = records.read_json("environment.json")
        records.write_json("environment.json", there | {"torch": "1.0"})
    with Records.open(tmp_path / "run", job()) as records:
        assert "may not be equal to the bit" in records.notices[0]
        assert f"torch 1.0 (then) / {torch.__version__} (now)" in records.notices[0]
        assert records.read_json("status.json")["attempts"] == 2
        text = json.dumps(records.read_json("environment.json"))
        assert str(Path.home()) not in text


def test_tensors_that_share_memory_are_written_each(tmp_path):
    from safetensors.torch import load_file

    network = torch.nn.Module()
    network.a = network.b = torch.nn.Parameter(torch.arange(6.0))
    network.c = torch.nn.Parameter(network.a.data.view(2, 3).t())
    with Records.open(tmp_path / "run", job()) as records:
        records.write_state("network.safetensors", network)
        found = load_file(records.path("network.safetensors"))
    assert torch.equal(found["a"], found["b"])
    assert torch.equal(found["c"], network.a.view(2, 3).t())


@pytest.mark.parametrize("name", ["a", "run-1", "resnet20_s=1+x", "0.5", "A" * 100])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "a..b", "end.", "con", "COM1.txt", "ü", "a\0", "A" * 101],
)
def test_bad_names(name):
    with pytest.raises(ValueError, match="cannot name a run"):
        check_name(name)


def test_reading_what_is_no_run(tmp_path):
    Records.open(tmp_path / "resnet", job()).close()
    assert read_job(tmp_path / "resnet") == job()
    with pytest.raises(ValueError, match="did you mean 'resnet'"):
        read_job(tmp_path / "resnt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not a run directory: it has no config"):
        read_job(tmp_path / "empty")
    (tmp_path / "empty" / "config.toml").write_text("= nonsense")
    with pytest.raises(ValueError, match="not a TOML file"):
        read_job(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LockedError, match="cannot be written"):
        Records.open(tmp_path / "run", job())
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LockedError, match="cannot be written"):
        Records.open(tmp_path / "file" / "run", job())


def test_a_run_directory_is_read_whether_it_is_open_or_not(tmp_path):
    files = RunFiles(tmp_path / "run")
    assert not files.is_run()
    assert files.why_unfinished() == ("pending", "")
    assert (files.rows(), files.text("config.toml"), files.read_json("record.json")) == ([], "", None)
    with Records.open(tmp_path / "run", job()) as records:
        records.log({"epoch": 1})
        records.status("failed", "no more images")
        assert files.is_run()
        assert files.rows() == records.metrics() == [{"epoch": 1}]
        assert files.text("config.toml") == job().to_toml()
        assert files.why_unfinished() == ("failed", "no more images")
        with pytest.raises(ValueError, match=r"not finished: `dnat resume .*run` goes on with it"):
            files.record()
        records.finish({"results": 1})
    assert files.is_done()
    assert files.record() == {"results": 1}


@pytest.mark.parametrize(("content", "problem"), [("{", "cannot be read: Expecting"), ("[]", "holds no table")])
def test_a_damaged_file_is_named(content, problem, tmp_path):
    files = RunFiles(tmp_path)
    for name in ("record.json", "status.json"):
        files.path(name).write_text(content)
    with pytest.raises(ValueError, match=f"/record.json {problem}"):
        files.record()
    state, reason = files.why_unfinished()
    assert state == "damaged"
    assert f"/status.json {problem}" in reason


def test_a_search_has_rows_and_checkpoints_of_its_own_and_no_lock(tmp_path):
    with Records.open(tmp_path / "run", job()) as records:
        search = records.of_search()
        assert not hasattr(search, "close")
        search.log({"epoch": 1})
        search.save(1, state(1))
        records.log({"epoch": 7})
        records.save(2, state(2))
        search.save(3, state(3))
        search.path("search-000000003.ckpt").write_bytes(b"")
        assert search.newest()[0] == 1
        assert "an older checkpoint is used" in records.notices[0]  # told where the run's user looks
        assert records.newest()[0] == 2
        assert (search.metrics(), records.metrics()) == ([{"epoch": 1}], [{"epoch": 7}])
        search.forget()
        assert search.newest() is None
        assert records.newest()[0] == 2


def test_a_label_makes_no_other_run(tmp_path):
    """A directory keeps the label that it began with, and tells whoever comes with another one."""
    plain, slow = job(), job().but(label="slow")
    told = []
    with Records.open(tmp_path / "plain", plain, notify=told.append):
        pass
    with Records.open(tmp_path / "slow", slow, notify=told.append):
        pass
    assert read_job(tmp_path / "slow").label == "slow"
    assert 'label = "slow"' in (tmp_path / "slow" / "config.toml").read_text()
    assert "label =" not in (tmp_path / "plain" / "config.toml").read_text()
    assert told == []
    for directory, given, kept in (("plain", slow, None), ("slow", plain, "slow"), ("slow", slow, "slow")):
        with Records.open(tmp_path / directory, given, notify=told.append) as records:
            assert records.job.label == kept
    assert told == ["label 'slow' is not taken: a run keeps the one that it began with (none)"]
    assert run_name(plain) == run_name(slow)


@pytest.mark.parametrize(
    "label", ["", " ", "a ", " a", "-a", "<b>", "a|b", "a\nb", "a@b", "a,b", "x" * 41, "ü", "nat", "dnat-full"]
)
def test_bad_labels(label):
    with pytest.raises(ValueError, match="label"):
        job().but(label=label)


@pytest.mark.parametrize("label", ["a", "slow 0.5", "lr_theta=1e-3", "x" * 40, "nat slow"])
def test_good_labels(label):
    labelled = job().but(label=label)
    assert Job.from_flat(labelled.flat()) == labelled
    assert label_of(labelled.flat()) == label
