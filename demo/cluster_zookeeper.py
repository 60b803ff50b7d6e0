"""ZooKeeper from Debian's package in its own process, which can be stopped, killed, frozen and restarted."""

import signal
import socket
import subprocess
import time
from pathlib import Path

CLASSES = "/etc/zookeeper/conf:/usr/share/java/*"
CONFIG = """tickTime=2000
dataDir={directory}/data
clientPort={port}
clientPortAddress=127.0.0.1
admin.enableServer=false
4lw.commands.whitelist=ruok
maxClientCnxns=0
"""
READY_WITHIN_SECONDS = 60


class ZooKeeper:
    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.port = directory, port
        self.process: subprocess.Popen[bytes] | None = None
        self.guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "zoo.cfg"
        config.write_text(CONFIG.format(directory=self.directory.resolve(), port=self.port))
        command = ["java", "-Xmx256m", "-Dzookeeper.forceSync=no", "-cp", CLASSES]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.guard = subprocess.Popen(  # ends ZooKeeper when we end, because Java does not notice
            ["sh", "-c", "read _; kill -9 $0", str(self.process.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"ZooKeeper did not start; {self.directory}/log says why. Is zookeeper installed?")
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
                connection.sendall(b"ruok")
                return connection.recv(8) == b"imok"
        except OSError:
            return False

    def freeze(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        if self.guard and self.guard.stdin:
            self.guard.stdin.close()
            self.guard.wait()
        self.process = self.guard = None
