"""A double of a Qdrant server: ``python qdrant_server.py PATH PORT KEY``.

What the gateway uses of the REST API, in front of Qdrant's own engine (the embedded one), so
that filters, orders, scores and the log that survives SIGKILL are the genuine ones. What
a server adds (shards, replicas, the API's finer errors) is not in it. Prints its port.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import qdrant_edge as qd

_DIRECTIONS = {"asc": qd.Direction.Asc, "desc": qd.Direction.Desc}
_KINDS = {"keyword": qd.PayloadSchemaType.Keyword, "integer": qd.PayloadSchemaType.Integer}


class Absent(Exception):
    pass


class Collections:
    """By name, each a shard in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._open: dict[str, qd.EdgeShard] = {}

    def exists(self, name: str) -> bool:
        return (self.path / name / "schema.json").exists()

    def shard(self, name: str) -> qd.EdgeShard:
        if not self.exists(name):
            raise Absent
        if name not in self._open:
            self._open[name] = qd.EdgeShard.load(str(self.path / name / "shard"))
        return self._open[name]

    def create(self, name: str, form: dict[str, Any]) -> None:
        folder = self.path / name
        folder.mkdir()
        vectors = {
            key: qd.EdgeVectorParams(one["size"], qd.Distance.Cosine)
            for key, one in form["vectors"].items()
        }
        self._open[name] = qd.EdgeShard.create(
            str(folder / "shard"), qd.EdgeConfig(vectors=vectors)
        )
        (folder / "schema.json").write_text(json.dumps(form["vectors"]))

    def schema(self, name: str) -> Any:
        self.shard(name)
        return json.loads((self.path / name / "schema.json").read_text())

    def delete(self, name: str) -> None:
        self.shard(name).close()
        del self._open[name]
        shutil.rmtree(self.path / name)


def condition(form: dict[str, Any]) -> qd.FieldCondition:
    if form.get("match"):
        return qd.FieldCondition(form["key"], match=qd.MatchValue(form["match"]["value"]))
    limits = {key: value for key, value in form["range"].items() if value is not None}
    return qd.FieldCondition(form["key"], range=qd.RangeFloat(**limits))


def filtered(form: dict[str, Any] | None) -> qd.Filter | None:
    if not form:
        return None
    parts: Any = {key: [condition(one) for one in value] for key, value in form.items() if value}
    return qd.Filter(**parts) if parts else None


def ordered(form: dict[str, Any] | None) -> qd.OrderBy | None:
    return qd.OrderBy(form["key"], _DIRECTIONS[form["direction"]]) if form else None


def place(text: object) -> int | UUID:
    return text if isinstance(text, int) else UUID(str(text))


def shown(record: Any) -> dict[str, Any]:
    form = {"id": record.id if isinstance(record.id, int) else str(record.id)}
    form["payload"] = record.payload
    if hasattr(record, "score"):
        form |= {"score": record.score, "version": record.version}
    return form


def scroll(shard: qd.EdgeShard, form: dict[str, Any]) -> Any:
    found, _ = shard.scroll(
        qd.ScrollRequest(
            limit=form["limit"],
            filter=filtered(form.get("filter")),
            with_payload=form["with_payload"],
            with_vector=False,
            order_by=ordered(form.get("order_by")),
        )
    )
    return {"points": [shown(one) for one in found], "next_page_offset": None}


def query(shard: qd.EdgeShard, form: dict[str, Any]) -> Any:
    def search(one: Any, using: Any) -> Any:
        if "order_by" in one:
            return ordered(one["order_by"])
        return qd.Query.Nearest(one if isinstance(one, list) else one["nearest"], using=using)

    exact = qd.SearchParams(exact=True)
    nested = form.get("prefetch") or []
    prefetches = [
        qd.Prefetch(
            limit=one["limit"],
            query=search(one["query"], one["using"]),
            filter=filtered(one["filter"]),
            params=exact,
            score_threshold=one["score_threshold"],
        )
        for one in (nested if isinstance(nested, list) else [nested])
    ]
    found = shard.query(
        qd.QueryRequest(
            limit=form["limit"],
            query=search(form["query"], form.get("using")),
            prefetches=prefetches,
            filter=filtered(form.get("filter")),
            params=exact,
            with_payload=form["with_payload"],
        )
    )
    return {"points": [shown(one) for one in found]}


def upsert(shard: qd.EdgeShard, form: dict[str, Any]) -> Any:
    made = [qd.Point(place(one["id"]), one["vector"], one["payload"]) for one in form["points"]]
    shard.update(qd.UpdateOperation.upsert_points(made))
    return {"operation_id": 1, "status": "completed"}


def retrieve(shard: qd.EdgeShard, form: dict[str, Any]) -> Any:
    ids: Any = [place(one) for one in form["ids"]]
    found = shard.retrieve(ids, with_payload=form["with_payload"], with_vector=False)
    return [shown(one) for one in found]


def delete(shard: qd.EdgeShard, form: dict[str, Any]) -> Any:
    ids: Any = [place(one) for one in form["points"]]
    shard.update(qd.UpdateOperation.delete_points(ids))
    return {"operation_id": 1, "status": "completed"}


def count(shard: qd.EdgeShard, form: dict[str, Any]) -> Any:
    return {"count": shard.count(qd.CountRequest(True, filtered(form.get("filter"))))}


def index(shard: qd.EdgeShard, form: dict[str, Any]) -> Any:
    kind = _KINDS[form["field_schema"]]
    shard.update(qd.UpdateOperation.create_field_index(form["field_name"], kind))
    return {"operation_id": 1, "status": "completed"}


ON_SHARDS = {
    ("POST", "points"): retrieve,
    ("PUT", "points"): upsert,
    ("POST", "points/scroll"): scroll,
    ("POST", "points/query"): query,
    ("POST", "points/count"): count,
    ("POST", "points/delete"): delete,
    ("PUT", "index"): index,
}


def info(shard: qd.EdgeShard, vectors: Any) -> Any:
    schema = shard.info().payload_schema
    return {
        "status": "green",
        "optimizer_status": "ok",
        "segments_count": 1,
        "payload_schema": {
            key: {"data_type": str(one.data_type).rpartition(".")[2].lower(), "points": one.points}
            for key, one in schema.items()
        },
        "config": {
            "params": {"vectors": vectors},
            "hnsw_config": {"m": 0, "ef_construct": 4, "full_scan_threshold": 1},
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "flush_interval_sec": 5,
            },
        },
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    collections: Collections
    key = ""

    def answer(self) -> None:
        size = int(self.headers.get("content-length", 0))
        form = json.loads(self.rfile.read(size) or b"{}")
        status, result = 200, None
        parts = self.path.partition("?")[0].strip("/").split("/", 2)
        name, rest = parts[1], parts[2] if len(parts) > 2 else ""
        if self.headers.get("api-key", "") != self.key:
            status, result = 401, "Must provide an API key or an Authorization bearer token"
        else:
            try:
                with self.collections.lock:
                    result = self.do(self.command, name, rest, form)
            except Absent:
                status, result = 404, f"Not found: Collection `{name}` doesn't exist!"
            except Exception as error:  # noqa: BLE001 - as a server does
                status, result = 500, f"{type(error).__name__}: {error}"
        said = {"result": result, "status": "ok", "time": 0.0}
        if status != 200:
            said = {"status": {"error": result}, "time": 0.0}
        body = json.dumps(said).encode()
        head = (
            f"HTTP/1.1 {status} .\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.wfile.write(head.encode() + body)

    def do(self, method: str, name: str, rest: str, form: dict[str, Any]) -> Any:
        if verb := ON_SHARDS.get((method, rest)):
            return verb(self.collections.shard(name), form)
        match method, rest:
            case "GET", "exists":
                return {"exists": self.collections.exists(name)}
            case "GET", "":
                return info(self.collections.shard(name), self.collections.schema(name))
            case "PUT", "":
                self.collections.create(name, form)
                return True
            case "DELETE", "":
                self.collections.delete(name)
                return True
        raise ValueError(f"{method} {self.path} is not known here")

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - http.server's names

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        pass  # a client that was killed


def main(path: str, port: str, key: str) -> None:
    Handler.collections = Collections(Path(path))
    Handler.key = key
    server = Server(("127.0.0.1", int(port)), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # it ends with whoever started it


if __name__ == "__main__":
    main(*sys.argv[1:])
