"""A web server for browser apps: an origin of its own, which knows nothing of the hub but its address.

Each app is a folder: `/NAME/launch.html`, `/NAME/` (where it comes back to) and `/NAME/config.json` (what it is registered as).
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGES = Path(__file__).parent / "app"


class AppServer:
    """`library`: the browser build of the SMART client library. `configs`: what each app tells it, by the name of the app."""

    def __init__(self, library):
        self.configs = {}
        self.library = library.read_bytes()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port = self._server.server_port

    @property
    def origin(self):
        """Of another site than 127.0.0.1, so that a browser keeps cookies of the hub from it."""
        return f"http://localhost:{self.port}"

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, _, file = self.path.partition("?")[0].lstrip("/").partition("/")
                if name == "fhir-client.js":
                    self.answer(server.library, "text/javascript")
                elif name not in server.configs:
                    self.send_error(404)
                elif file == "config.json":
                    self.answer(json.dumps(server.configs[name]).encode(), "application/json")
                elif file in ("", "launch.html"):
                    self.answer((PAGES / (file or "index.html")).read_bytes(), "text/html; charset=utf-8")
                else:
                    self.send_error(404)

            def answer(self, body, kind):
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                """Silence."""

        return Handler
