"""Runs commands of modicum, each in a process forked from this one, which has imported everything; in each a fault may be armed.

A JSON line on stdin asks: the ``words`` of the command, a ``log`` for what it prints, the folder ``home`` in which its writes count, and the
fault. A line on stdout answers: the exit code, negative for a signal, or ``{"stopped": its process}``.

A *moment* is a call that changes what lies in ``home``: a file opened for writing, a piece or a flush of it, names made, moved and removed.
Between two moments nothing there changes, so that a process which died before each of them has died everywhere.
"""

import errno
import json
import os
import signal
import sys
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Audited calls that change names, and where in their arguments the folder stands that a relative path counts from.
NAMES = {"os.mkdir": 2, "os.rmdir": 1, "os.remove": 1, "os.rename": 2}
# What a full disk refuses.
GROWING = {"open", "write", "flush", "os.mkdir"}


class Disk:
    """Counts moments in ``home`` and reads of the model's weights, and lets the n-th of one kind go wrong.

    ``kill``: the process dies before that moment, with half of what it writes there; ``stop``: it waits there. ``full``: from that moment on no
    space is left. ``unreadable``: that read fails; ``truncated``: the file ends where that read begins. ``trace``: a file that gets a line for each.
    """

    def __init__(self, home, *, kill=0, stop=0, full=0, unreadable=0, truncated=0, trace=os.devnull):
        self.home, self.kill, self.stop, self.full = home, kill, stop, full
        self.unreadable, self.truncated = unreadable, truncated
        self.trace = os.open(trace, os.O_WRONLY | os.O_CREAT)
        self.moments = self.reads = 0
        self.pwrite, self.fsync, self.preadv = os.pwrite, os.fsync, os.preadv
        os.pwrite, os.fsync, os.preadv = self.on_write, self.on_flush, self.on_read
        sys.addaudithook(self.on_event)

    def on_event(self, event, details):
        if event == "open" and isinstance(details[0], str | bytes) and details[2] & WRITING:
            self.moment(event, Path(os.fsdecode(details[0])).absolute())
        elif event in NAMES:
            folder = details[NAMES[event]]
            self.moment(event, (Path.cwd() if folder == -1 else path_of(folder)) / os.fsdecode(details[0]))

    def on_write(self, descriptor, view, offset):
        self.moment("write", path_of(descriptor), lambda: self.pwrite(descriptor, view[: len(view) // 2], offset))
        return self.pwrite(descriptor, view, offset)

    def on_flush(self, descriptor):
        path = path_of(descriptor)
        # A process that dies as it hands a file to the system may have handed over any part.
        self.moment("flush", path, lambda: path.is_file() and os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2))
        return self.fsync(descriptor)

    def on_read(self, descriptor, buffers, offset):
        path = path_of(descriptor)
        if path.name == "model.safetensors" and not path.is_relative_to(self.home):
            self.reads += 1
            os.write(self.trace, b"read\n")
            if self.reads == self.unreadable:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if self.reads == self.truncated:
                os.truncate(path, offset)
        return self.preadv(descriptor, buffers, offset)

    def moment(self, what, path, half=lambda: None):
        if not path.is_relative_to(self.home):
            return
        self.moments += 1
        os.write(self.trace, f"{what} {path.relative_to(self.home)}\n".encode())
        if self.moments == self.kill:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.moments == self.stop:
            os.kill(os.getpid(), signal.SIGSTOP)
        if 0 < self.full <= self.moments and what in GROWING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def path_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def work(words, log, home, fault):
    """One command, as a shell would run it."""
    from modicum.cli.main import main

    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    disk = Disk(home, **fault)
    try:
        main(words, prog_name="modicum")
    except SystemExit as left:
        return left.code or 0
    finally:
        sys.stdout.flush()
        disk.home = "/nowhere"  # what remains is no part of the command
    return 1


def serve():

    import modicum.fit
    import modicum.receipt.report  # noqa: F401
    from modicum.models.open import open_model

    open_model("demo")  # which imports the tokenizer's classes and what opening needs
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                code = work(**json.loads(line))
            finally:
                os._exit(code)
        status = os.waitpid(child, os.WUNTRACED)[1]
        print(json.dumps({"stopped": child} if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    serve()
