"""A stand-in for a W&B server on the loopback interface: takes what W&B's own clients send, and keeps it.

It answers what those clients ask for and checks nothing, so that it shows what is sent and not what a real server
would make of it. Runs that come again are told how far their history is, as the real one does.
"""

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789abcdef0123456789abcdef01234567"
"""A key of the right form, for nobody."""

USER = {"id": "u1", "username": "me", "name": "me", "email": "me@here", "entity": "me", "flags": "{}"}
USER |= {"admin": False, "photoUrl": None, "deletedAt": None, "apiKeys": {"edges": []}, "teams": {"edges": []}}


class WandbServer(ThreadingHTTPServer):
    """Use it as a context manager.

    Attributes:
        operations: (name, variables) of each GraphQL operation, in order.
        lines: {run id: {file: its lines, parsed}} of what was streamed: wandb-history.jsonl, wandb-summary.json.
        ended: {run id: exit code} of runs that ended.
        files: {name: bytes} of what was uploaded.
        posted: other addresses that were posted to.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.operations, self.posted = [], []
        self.lines, self.ended, self.files = {}, {}, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that end in mid-sentence are none of its concern."""

    def sent(self, name):
        """The variables of all operations of a name."""
        return [variables for operation, variables in self.operations if operation == name]

    def history(self, run):
        """The rows of a run's history."""
        return self.lines[run]["wandb-history.jsonl"]

    def answer(self, query, variables):
        """What an operation is told."""
        for name, answer in ANSWERS.items():
            if re.search(rf"\b{name}\b", query):
                return answer(self, variables)
        return {}

    def upsert_bucket(self, v):
        name = v.get("name") or "unnamed"
        bucket = {"id": name, "name": name, "displayName": v.get("displayName") or name, "description": ""}
        bucket |= {"config": "{}", "sweepName": None, "historyLineCount": len(self._history(name))}
        bucket["project"] = {"id": "p1", "name": v.get("project") or "dnat", "entity": {"id": "e1", "name": "me"}}
        return {"upsertBucket": {"bucket": bucket, "inserted": name not in self.lines}}

    def resume(self, v):
        rows = self._history(v["name"])
        if not rows:
            return {"model": {"id": "p1", "name": "dnat", "entity": {"id": "e1", "name": "me"}, "bucket": None}}
        bucket = {"id": v["name"], "name": v["name"], "config": "{}", "tags": [], "wandbConfig": "{}"}
        bucket |= {"summaryMetrics": json.dumps(rows[-1]), "displayName": v["name"], "eventsTail": "[]"}
        bucket |= {"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0}
        bucket["historyTail"] = json.dumps([json.dumps(rows[-1])])
        return {"model": {"id": "p1", "name": "dnat", "entity": {"id": "e1", "name": "me"}, "bucket": bucket}}

    def _history(self, run):
        return self.lines.get(run, {}).get("wandb-history.jsonl", [])

    def run_files(self, v):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in v.get("files", [])]
        return {"createRunFiles": {"runID": "b1", "uploadHeaders": [], "files": files}}

    def view(self, v):
        view = {"id": "VmlldzoxMjM=", "type": v.get("type"), "spec": v.get("spec"), "user": USER}
        view |= {"name": v.get("name"), "displayName": v.get("displayName"), "description": v.get("description")}
        view |= {"project": {"id": "p1", "name": v.get("projectName"), "entityName": v.get("entityName")}}
        view |= {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": view | {"previewUrl": None, "coverUrl": None}, "inserted": True}}

    def projects(self, v):
        node = {"id": "p1", "name": "dnat", "entityName": "me", "createdAt": "2026-01-01T00:00:00"}
        edges = [{"node": node | {"isBenchmark": False, "user": USER}, "cursor": "c"}]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def artifact(self, v):
        sequence = {"id": "s1", "latestArtifact": {"id": "a1", "versionIndex": 0}}
        return {"createArtifact": {"artifact": {"id": "a1", "state": "COMMITTED", "artifactSequence": sequence}}}

    def stream(self, run, body):
        """Take lines of a run's files; an offset says where they belong."""
        for name, part in (body.get("files") or {}).items():
            if name.endswith((".json", ".jsonl")):
                known = self.lines.setdefault(run, {}).setdefault(name, [])
                known[part["offset"] :] = [json.loads(line) for line in part["content"]]
        if body.get("complete"):
            self.ended[run] = body.get("exitcode")


INTERNAL = {"project": {"id": "UHJvamVjdDox", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}
VERSIONS = {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None, "features": []}

# A field of an operation -> its answer; the first one that occurs counts.
ANSWERS = {
    "upsertBucket": WandbServer.upsert_bucket,
    "createRunFiles": WandbServer.run_files,
    "createArtifact": WandbServer.artifact,
    "upsertView": WandbServer.view,
    "ArtifactType": lambda self, v: {"project": None},
    "upsertModel": lambda self, v: {
        "upsertModel": {"model": {"id": "p1"}, "project": {"id": "p1"}, "inserted": True}
    },
    "internalId": lambda self, v: INTERNAL,
    "RunResumeStatus": WandbServer.resume,
    "models": WandbServer.projects,
    "viewer": lambda self, v: {"viewer": USER, "serverInfo": VERSIONS},
    "serverInfo": lambda self, v: {"serverInfo": VERSIONS},
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *message):
        pass

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self._send({})

    def do_PUT(self):
        self.server.files[self.path.removeprefix("/upload/")] = self._body()
        self._send({})

    def do_POST(self):
        body = self._body()
        if "graphql" in self.path:
            asked = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            variables = asked.get("variables") or {}
            self.server.operations.append((named[1] if named else "", variables))
            self._send({"data": self.server.answer(asked["query"], variables)})
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body))
            self._send({"exitcode": None, "limits": {}})
        else:
            self.server.posted.append(self.path)
            self._send({})
