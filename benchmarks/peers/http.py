"""The paper's own protocol, rewritten: HTTP, tensors as JSON lists, replies compressed by gzip."""

from __future__ import annotations

import gzip
import json
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.workloads import Workload
from benchmarks.peers.exchange import Body, Kind


def serve(workload: Workload, address: str) -> None:
    body = Body(workload)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = body("forward" if self.path == "/forward" else "backward", torch.tensor(request))
            packed = gzip.compress(json.dumps(reply.tolist()).encode())
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(packed)))
            self.end_headers()
            self.wfile.write(packed)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", int(address)), Handler) as server:
        server.serve_forever()


class Exchange:
    def __init__(self, workload: Workload, address: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", int(address))

    def __call__(self, kind: Kind, tensor: Tensor) -> Tensor:
        self._connection.request("POST", f"/{kind}", json.dumps(tensor.tolist()).encode())
        packed = self._connection.getresponse().read()
        return torch.tensor(json.loads(gzip.decompress(packed)))
