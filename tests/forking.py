"""Processes of fhircm for tests that start them by the dozen, where what they do is the matter and not how Python starts.

Each is forked from one process that has imported everything and done nothing else: importing takes a second, and a fork a hundredth of it.
A process that was forked is as much one of its own as any other: its own id, memory, connections, and death.
"""

import gc
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path


class Forked:
    """One process, with what subprocess.Popen has for it."""

    def __init__(self, told, pid):
        self._told, self.pid, self.returncode = told, pid, None

    def poll(self):
        return self._ended(0)

    def wait(self, timeout=None):
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired("fork", timeout)
        return self.returncode

    def _ended(self, timeout):
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._told.recv(16, socket.MSG_PEEK))  # it stays for whoever else waits, in another thread
        return self.returncode

    def __del__(self):
        self._told.close()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Forking:
    """The process that is forked from: started when it is first needed."""

    def __init__(self):
        self._asked = self._process = None

    def launch(self, *arguments, environment, output=None, folder=None):
        """What Processes.launch does, by a fork."""
        if self._process is None:
            self._asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, "-u", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
            theirs.close()
        told, ended = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ended, Path(os.devnull).open("r+b", buffering=0) as nothing:
            standard = {None: (1, 2), subprocess.DEVNULL: (nothing.fileno(),) * 2}
            out, err = standard[output] if output in standard else (output.fileno(),) * 2
            request = {"arguments": arguments, "environment": dict(environment), "folder": str(folder or Path.cwd())}
            socket.send_fds(self._asked, [json.dumps(request).encode()], [nothing.fileno(), out, err, ended.fileno()])
        return Forked(told, int(told.recv(16)))

    def close(self):
        if self._process is not None:
            self._asked.close()
            self._process.wait()


def requests(asked):
    """Fork for each request, and tell how each child ended, until nobody can ask any more. Returns, in a child, what it is to run."""
    children = {}
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            for pid in list(children):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    with children.pop(pid) as told:
                        _tell(told, os.waitstatus_to_exitcode(status))
        if asked in ready:
            body, standard, _, _ = socket.recv_fds(asked, 1 << 20, 4)
            if not body:
                sys.exit()
            told = socket.socket(fileno=standard.pop())
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (asked, woken, wake, told, *children.values()):
                    one.close()
                for number, descriptor in enumerate(standard):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                return json.loads(body)
            for descriptor in standard:
                os.close(descriptor)
            children[pid] = told
            _tell(told, pid)


def _tell(told, number):
    with suppress(OSError):  # whoever asked is gone
        told.send(str(number).encode())


def run():
    """Be what is forked from, and then what was asked for."""
    import fhircm
    from fhircm.cli import main as command
    from fhircm.exchange.trust import trust
    from fhircm.fhir.definitions import definitions
    from fhircm.sandbox.__main__ import main as sandbox

    for module in pkgutil.walk_packages(fhircm.__path__, "fhircm."):  # some are imported by what a command does
        if ".migrations." not in module.name:
            import_module(module.name)
    definitions()
    trust()
    gc.collect()
    gc.freeze()
    request = requests(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    module, *sys.argv[1:] = request["arguments"]
    {"fhircm.cli": command, "fhircm.sandbox": sandbox}[module]()


if __name__ == "__main__":
    run()
