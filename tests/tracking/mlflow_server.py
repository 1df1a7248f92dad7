"""A real MLflow server in processes of its own, and a proxy that loses its answers."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.forked import free_port

START_S = 180


class MlflowServer:
    """`mlflow server` over the sqlite file `database`; killed and started at will, always on the same port."""

    def __init__(self, database: Path) -> None:
        self._database, self.port = database, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        store = ("--backend-store-uri", f"sqlite:///{self._database}")
        artifacts = ("--artifacts-destination", str(self._database.with_name("artifacts")))
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._database.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *store, *artifacts], stdout=log, stderr=log, env=quiet, start_new_session=True
            )
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, self._database.with_suffix(".log").read_text()
                time.sleep(0.1)
        raise AssertionError(f"no answer: {self._database.with_suffix('.log').read_text()}")

    def kill(self) -> None:
        """Send SIGKILL to all its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class LossyProxy:
    """Passes requests on; the answer to every first attempt of a write is lost after the server has done it."""

    def __init__(self, server: MlflowServer) -> None:
        seen: set[tuple[str, bytes]] = set()
        self.lost = lost = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name != "Host"}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
                writes = self.command != "GET" and not self.path.endswith("/search")
                if writes and (self.path, body) not in seen:
                    seen.add((self.path, body))
                    lost.append(self.path)
                    self.connection.close()
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PUT = do_PATCH = do_GET

            def log_message(self, format: str, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections closed on purpose
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
