"""A hub on loopback: as much of its interface as pushing and fetching need, with what it holds in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories by name, each a list of commits, each a mapping from a file's name to its content.

    Attributes:
        repositories: ``user/name`` -> list of (commit, files).
        private: ``user/name`` -> whether only its owner may see it.
        asked: every request, as "METHOD path".
    """

    def __init__(self):
        self.repositories, self.private, self.asked = {}, {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status, body=b"", **headers):
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def handle_any(self):
                path = unquote(urlsplit(self.path).path)
                hub.asked.append(f"{self.command} {path}")
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.respond(self, path, content)

            do_GET = do_HEAD = do_POST = handle_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def put(self, name, **files):
        """A commit with these files (``_`` is a dot) and no others; gives its hash."""
        return self.commit(
            name, {key if "." in key else key.replace("_", "."): value for key, value in files.items()}
        )

    def commit(self, name, files):
        commits = self.repositories.setdefault(name, [])
        digest = hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits.append((digest, files))
        return digest

    def files_at(self, name, revision):
        commits = self.repositories[name]
        return commits[-1] if revision == "main" else next((c for c in commits if c[0] == revision), None)

    def respond(self, request, path, content):
        if path == "/":
            return request.answer(200)
        if path == "/api/validate-yaml":
            return request.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repositories:
                return request.answer(409, {"error": "exists", "url": f"{self.url}/{name}"})
            # newer clients say it in another word
            self.private[name] = asked.get("private") or asked.get("visibility") == "private"
            self.commit(name, {})
            return request.answer(200, {"url": f"{self.url}/{name}", "name": name})
        form = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|tree|revision)/(.+))?", path)
        if form:
            return self.api(request, *form.groups(), content)
        form = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if form is None or form[1] not in self.repositories:
            return request.answer(404, {"error": "none"}, X_Error_Code="RepoNotFound")
        found = self.files_at(form[1], form[2])
        if found is None:
            return request.answer(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
        if form[3] not in found[1]:
            return request.answer(
                404, {"error": "none"}, X_Error_Code="EntryNotFound", X_Repo_Commit=found[0]
            )
        body = found[1][form[3]]
        return request.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=found[0])

    def api(self, request, name, what, revision, content):
        if name not in self.repositories:
            return request.answer(404, {"error": "none"}, X_Error_Code="RepoNotFound")
        commit, files = self.files_at(name, (revision or "main").partition("/")[0])
        if what == "preupload":
            paths = [one["path"] for one in json.loads(content)["files"]]
            answers = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return request.answer(200, {"files": answers})
        if what == "commit":
            lines = [json.loads(line) for line in content.splitlines()]
            new = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            digest = self.commit(name, {**files, **new})
            where = f"{self.url}/{name}/commit/{digest}"
            return request.answer(200, {"commitUrl": where, "commitOid": digest})
        if what == "tree":
            entries = [{"type": "file", "path": path, "size": len(files[path]), "oid": "0"} for path in files]
            return request.answer(200, entries)
        siblings = [{"rfilename": path} for path in files]
        return request.answer(200, {"id": name, "sha": commit, "siblings": siblings, "tags": []})
