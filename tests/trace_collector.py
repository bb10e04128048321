"""An OpenTelemetry collector for tests: it takes spans over HTTP, and keeps them."""

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.processes import wait_until

HOPS = ("Chat", "EncodeImage", "EncodeRegions", "Decode")
"""In the names of the spans of a question about a region: what a trace of the whole platform joins."""


class Collector(ThreadingHTTPServer):
    """Takes spans until it is shut down."""

    def __init__(self) -> None:
        spans = self.spans = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_): ...

        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def assert_joined(self, trace_id: int) -> None:
        """Waits until a trace has spans of every hop."""

        def joined() -> bool:
            names = " ".join(span.name for span in self.spans if span.trace_id == trace_id.to_bytes(16))
            return all(hop in names for hop in HOPS)

        wait_until(joined, 60, 1)


@contextlib.contextmanager
def trace_collector() -> Iterator[Collector]:
    """One that runs until the end of the block."""
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()
