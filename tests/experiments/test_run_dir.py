"""The run folder: manifest, lock, and stages that are skipped, resumed or done anew."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compress.errors import ArtifactError
from compress.files import read_json
from experiments.manifest import hash_file
from experiments.run_dir import RunDir, read_manifest

TOLD = ("page.html", "figures")


def _stage(run, text="result", settings=None, calls=None, **more):
    def work():
        if calls is not None:
            calls.append(text)
        run.file("out.txt").write_text(text)

    return run.run_stage("copy", work, inputs=["in.txt"], outputs=["out.txt"], settings=settings, **more)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "in.txt").write_text("input")
    with RunDir(tmp_path) as run:
        yield run


def test_the_manifest_tells_what_was_run(tmp_path):
    outside = tmp_path / "data.bin"
    outside.write_bytes(b"data")
    with RunDir(tmp_path / "run", {"threads": 1, "seeds": {"seed": 4}}) as run:
        assert read_manifest(run.path)["status"] == "running"
        run.add_input(outside)
        run.file("plan.json").write_text("{}")
        run.add_output(run.path / "plan.json")
        run.set_metrics({"accuracy": 90.0})
    manifest = read_manifest(tmp_path / "run")
    assert manifest["status"] == "finished"
    assert manifest["threads"] == 1
    assert manifest["seeds"] == {"seed": 4}
    assert manifest["metrics"] == {"accuracy": 90.0}
    assert manifest["inputs"] == {str(outside): hash_file(outside)}
    assert manifest["outputs"] == {"plan.json": hash_file(tmp_path / "run" / "plan.json")}
    # The last two make the packed files.
    assert {"torch", "constriction", "zstandard"} <= set(manifest["libraries"])
    assert {"version", "commit"} & set(manifest["code"])
    assert manifest["machine"]["cores"] >= 1


@pytest.mark.parametrize(("error", "status"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_the_manifest_tells_how_a_run_ended(tmp_path, error, status):
    with pytest.raises(type(error)), RunDir(tmp_path):
        raise error
    manifest = read_manifest(tmp_path)
    assert manifest["status"] == status
    assert type(error).__name__ in manifest["error"]
    with RunDir(tmp_path):
        pass
    assert read_manifest(tmp_path)["status"] == "finished"
    assert "error" not in read_manifest(tmp_path)
    assert read_manifest(tmp_path)["sessions"] == 2
    assert read_manifest(tmp_path)["started"] == manifest["started"]


def test_a_finished_stage_is_skipped(run):
    calls = []
    assert _stage(run, calls=calls)
    assert not _stage(run, calls=calls)
    assert calls == ["result"]


@pytest.mark.parametrize("change", ["input", "settings", "output lost", "output altered", "marker damaged"])
def test_a_stage_is_done_anew_when_anything_changed(run, change):
    calls = []
    _stage(run, "first", {"epochs": 1}, calls)
    settings = {"epochs": 1}
    if change == "input":
        run.file("in.txt").write_text("other")
    elif change == "settings":
        settings = {"epochs": 2}
    elif change == "output lost":
        run.file("out.txt").unlink()
    elif change == "output altered":
        run.file("out.txt").write_text("fir")
    else:
        run.file("stages/copy.json").write_text('{"status": "fini')
    assert _stage(run, "second", settings, calls)
    assert calls == ["first", "second"]
    assert run.file("out.txt").read_text() == "second"
    assert not _stage(run, "third", settings, calls)


def test_an_unfinished_stage_finds_its_own_partial_work_only(run):
    seen = []

    def work(stop):
        rows = run.file("rows.txt")
        seen.append(rows.read_text() if rows.exists() else "")
        with rows.open("a") as file:
            file.write("row ")
        if stop:
            raise KeyboardInterrupt
        run.file("out.txt").write_text("done")

    def attempt(stop, seed):
        return run.run_stage(
            "measure", lambda: work(stop), outputs=["out.txt"], scratch=["rows.txt"], settings={"seed": seed}
        )

    with pytest.raises(KeyboardInterrupt):
        attempt(stop=True, seed=0)
    with pytest.raises(KeyboardInterrupt):
        attempt(stop=True, seed=0)
    with pytest.raises(KeyboardInterrupt):
        attempt(stop=True, seed=1)  # another seed: the rows of seed 0 are not its own
    assert attempt(stop=False, seed=1)
    assert seen == ["", "row ", "", "row "]


def test_what_tells_of_an_output_goes_with_it(run):
    def begin(settings):
        def work():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run.run_stage("copy", work, inputs=["in.txt"], outputs=["out.txt"], settings=settings, told=TOLD)
        return run.file("page.html").exists(), run.file("figures").exists()

    def told():
        run.file("page.html").write_text("of out.txt")
        run.file("figures/a.png").write_text("of out.txt")

    _stage(run, settings={"epochs": 1}, told=TOLD)
    told()
    assert not _stage(run, settings={"epochs": 1}, told=TOLD)
    assert run.file("figures/a.png").exists()
    assert begin({"epochs": 2}) == (False, False)
    told()  # of what was left
    assert begin({"epochs": 2}) == (True, True)
    _stage(run, settings={"epochs": 2}, told=TOLD)
    run.file("out.txt").write_text("altered")
    assert begin({"epochs": 2}) == (False, False)


def test_output_folders_are_hashed_whole(run):
    def work():
        run.file("artifact/a/b.txt").write_text("b")

    assert run.run_stage("save", work, outputs=["artifact"])
    assert not run.run_stage("save", work, outputs=["artifact"])
    run.file("artifact/a/c.txt").write_text("more")
    assert run.run_stage("save", work, outputs=["artifact"])
    assert not run.file("artifact/a/c.txt").exists()


def test_a_pattern_stands_for_the_files_that_match_it(run):
    def work():
        for name in ("a.onnx", "b.onnx"):
            run.file(f"artifact/{name}").write_text(name)

    def attempt():
        return run.run_stage("export", work, outputs=["artifact/*.onnx"])

    assert attempt()
    assert not attempt()
    run.file("artifact/a.onnx").unlink()
    assert attempt()
    run.file("artifact/b.onnx").write_text("other")
    assert attempt()
    run.file("artifact/c.onnx").write_text("of nobody")
    assert attempt()
    assert not attempt()
    assert [path.name for path in sorted((run.path / "artifact").iterdir())] == ["a.onnx", "b.onnx"]


def test_what_another_configuration_left_is_deleted(run):
    (run.path / "folder").mkdir()
    for name in ("folder/file", "labels.npz", "other"):
        (run.path / name).write_text("x")
    run.delete(["folder", "labels.npz", "missing"])
    assert not (run.path / "folder").exists()
    assert not (run.path / "labels.npz").exists()
    assert (run.path / "other").exists()


def test_missing_inputs_and_outputs_are_named(run):
    with pytest.raises(ArtifactError, match=r"Stage 'x' needs .*nothing\.npz"):
        run.run_stage("x", lambda: None, inputs=["nothing.npz"], outputs=["out.txt"])
    with pytest.raises(ArtifactError, match=r"Stage 'x' ended without writing .*out\.txt"):
        run.run_stage("x", lambda: None, outputs=["out.txt"])


def test_a_folder_in_use_is_refused_and_free_again_afterwards(run):
    with pytest.raises(ArtifactError, match="in use by another process"), RunDir(run.path):
        pass
    assert read_manifest(run.path)["status"] == "running"


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"Cannot write into the run folder .*hydra\.run\.dir"):
        RunDir(tmp_path / "file" / "run").__enter__()


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(ArtifactError, match="Read-only file system"):
        RunDir(tmp_path).__enter__()


def test_a_full_disk_is_refused_before_work_and_during_it(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
        with pytest.raises(ArtifactError, match="has 1 MiB free, 64 are needed"):
            RunDir(tmp_path).__enter__()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = RunDir(tmp_path).__enter__()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left") as caught:
        run.run_stage("x", lambda: None, outputs=[])
    run.__exit__(caught.type, caught.value, None)  # what it cannot write now does not hide the error
    monkeypatch.undo()
    with RunDir(tmp_path):  # the lock was let go all the same
        pass


def test_kill_9_in_a_stage_then_the_same_command_goes_on(tmp_path, monkeypatch):
    program = (
        "import os, signal, sys\n"
        "from experiments.run_dir import RunDir\n"
        "with RunDir(sys.argv[1]) as run:\n"
        "    run.run_stage('one', lambda: run.file('one.txt').write_text('1'), outputs=['one.txt'])\n"
        "    def two():\n"
        "        with run.file('rows.txt').open('a') as rows: rows.write('row')\n"
        "        if len(run.file('rows.txt').read_text()) < 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        run.file('two.txt').write_text('2')\n"
        "    run.run_stage('two', two, inputs=['one.txt'], outputs=['two.txt'], scratch=['rows.txt'])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path)])
    exec(program, {})
    assert read_manifest(tmp_path)["status"] == "finished"
    assert read_json(tmp_path / "stages" / "two.json")["status"] == "finished"
    assert (tmp_path / "rows.txt").read_text() == "rowrow"
    assert not list(tmp_path.glob(".*.part"))


def test_a_foreign_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    with pytest.raises(ArtifactError, match="schema version"):
        read_manifest(tmp_path)
