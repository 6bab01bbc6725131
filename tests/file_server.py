"""A folder on loopback over HTTP, which counts what it is asked for and can answer wrongly."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Served:
    """What a test sees of the server.

    Attributes:
        url: of the folder.
        asked: names of files, one for each GET.
        faults: name -> what to do with its content, once for each function in the list.
    """

    def __init__(self, url: str) -> None:
        self.url, self.asked, self.faults = url, [], {}


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, directory=str(folder), **options)

        def log_message(self, *_):
            pass

        def do_GET(self):
            name = self.path.strip("/")
            known.asked.append(name)
            if not known.faults.get(name):
                return super().do_GET()
            content = known.faults[name].pop(0)((folder / name).read_bytes())
            self.send_response(200 if content is not None else 503)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    known = Served(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
