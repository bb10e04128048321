"""OpenTelemetry: one trace from the client through proxy, gateway, encoder and sampler to the decoder.

It is on where `OTEL_EXPORTER_OTLP_ENDPOINT` says where spans go, over HTTP. Ray Serve makes the spans of the platform and hands
them on between deployments; clients whose program has a current span send its context along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_SHARE = "OTEL_TRACES_SAMPLER_ARG"


def serve_environment(environment: dict[str, str]) -> dict[str, str]:
    """What Ray Serve must find in the environment of its nodes, given that of this process.

    Raises `RuntimeError` if spans are asked for and cannot be sent.
    """
    if not environment.get(ENDPOINT):
        return {}
    _otlp()
    return {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": f"{__name__}:span_processors",
        "RAY_SERVE_TRACING_SAMPLING_RATIO": environment.get(_SHARE, "1"),
    }


def span_processors() -> list[SpanProcessor]:
    """Called by Ray Serve in each of its processes."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(_otlp()())]


def current_context() -> dict[str, str]:
    """The caller's current span as metadata of a call; empty if there is none, or no OpenTelemetry."""
    try:
        from opentelemetry.propagate import inject
    except ModuleNotFoundError:
        return {}
    context: dict[str, str] = {}
    inject(context)
    return context


def _otlp() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise RuntimeError(f"{ENDPOINT} needs the exporter: pip install 'ferret-platform[tracing]'") from None
    return OTLPSpanExporter
