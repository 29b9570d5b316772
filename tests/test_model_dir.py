"""One writer in a folder, whatever becomes of the lock's file, and a message where there is no lock to be had."""

import errno
import fcntl
import os
import shutil
import socket

import pytest
from test_experiment import train

import trainer
from trainer.output.model_dir import ModelDir, ModelDirLock

BUSY = r"is being written by process \d+ on "


@pytest.fixture
def files(tmp_path):
    found = ModelDir(tmp_path / "run")
    found.create()
    return found


def test_a_lock_whose_file_was_deleted_still_keeps_others_out(files):
    with ModelDirLock(files):
        with pytest.raises(trainer.UserError, match=BUSY), ModelDirLock(files):
            pass
        files.lock_file.unlink()
        with pytest.raises(trainer.UserError, match="is being written by another process"), ModelDirLock(files):
            pass
    with ModelDirLock(files):
        assert files.lock_file.exists()


def test_a_file_that_is_deleted_between_its_opening_and_its_lock_is_none(files, monkeypatch):
    flock, deleted = fcntl.flock, []

    def deletes_first(descriptor, operation):
        flock(descriptor, operation)
        if files.lock_file.exists() and not deleted:
            deleted.append(files.lock_file.unlink())

    monkeypatch.setattr(fcntl, "flock", deletes_first)
    with ModelDirLock(files):
        assert deleted and f"process {os.getpid()}" in files.lock_file.read_text()
        monkeypatch.undo()
        with pytest.raises(trainer.UserError, match=BUSY), ModelDirLock(files):
            pass


@pytest.mark.full
def test_who_did_not_let_go_on_another_host_is_named(files, capsys):
    files.lock_file.write_text("process 7 on another-host")
    train(model_dir=files.path, num_steps=1)
    assert "lock             process 7 on another-host did not let go of it" in capsys.readouterr().out
    train(model_dir=files.path, num_steps=2)
    assert "lock  " not in capsys.readouterr().out
    files.lock_file.write_text(f"process 7 on {socket.gethostname()}")
    train(model_dir=files.path, num_steps=3)
    assert "lock  " not in capsys.readouterr().out, "here the kernel would know"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOLCK, "mount it with them .NFS: its lock service, or version 4; Lustre: the option flock"),
        (errno.EOPNOTSUPP, "choose a --model_dir on another one"),
        (errno.EIO, "choose another --model_dir"),
    ],
)
def test_a_file_system_without_locks_is_a_message(files, monkeypatch, number, advice):
    def refuse(*unused):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(trainer.UserError, match=f"cannot be locked: {os.strerror(number)}. .*{advice}"):
        ModelDirLock(files).__enter__()


def test_a_file_system_that_locks_files_alone_will_do(files, monkeypatch):
    flock = fcntl.flock

    def as_nfs(descriptor, operation):
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    with ModelDirLock(files), pytest.raises(trainer.UserError, match=BUSY):
        ModelDirLock(files).__enter__()


def test_a_full_disk_is_a_message_unless_there_is_room_for_the_name(small_disk):
    files = ModelDir(small_disk)
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(trainer.UserError, match="cannot be locked: No space left on device. Make room there"):
        ModelDirLock(files).__enter__()
    (small_disk / "filler").unlink()
    with ModelDirLock(files):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="another user can be had by root alone")
def test_the_file_of_another_user_is_a_message(files):
    with ModelDirLock(files):
        pass
    files.path.chmod(0o777)
    files.lock_file.chmod(0o600)
    unprivileged = 65534  # of no person
    try:
        os.seteuid(unprivileged)
        with pytest.raises(trainer.UserError, match="cannot be locked: Permission denied. It is another user's"):
            ModelDirLock(files).__enter__()
    finally:
        os.seteuid(0)
