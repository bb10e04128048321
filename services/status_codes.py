"""What goes wrong, as gRPC's status codes and messages that say what to do. No traceback crosses the wire."""

from __future__ import annotations

import logging
import math
import uuid

import grpc
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from ferret_core.geometry import RegionError
from ferret_core.images import ImageError
from ferret_core.prompt import PromptError
from services.errors import (
    A_REPLICA_LOST,
    AN_INCIDENT,
    ForbiddenError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from services.settings import RETRY_SECONDS

logger = logging.getLogger("ray.serve")

REPLICA_LOST = (ActorDiedError, ActorUnavailableError, grpc.aio.AioRpcError)
"""Raised by a call whose replica, or the connection to it, went away; what it did is not known."""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The status and the message for the client."""
    match error:
        case RayTaskError():
            pass  # of a replica, also where it is a `ValueError` there: the gateway has checked the request
        case NotFoundError():
            return grpc.StatusCode.NOT_FOUND, str(error)
        case InvalidRequestError() | RegionError() | PromptError() | ImageError():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case UnauthenticatedError():
            return grpc.StatusCode.UNAUTHENTICATED, str(error)
        case ForbiddenError():
            return grpc.StatusCode.PERMISSION_DENIED, str(error)
        case LimitError() | BackPressureError():
            # In words as well: Serve's gRPC proxy sends no metadata with an error.
            reason = str(error) if isinstance(error, LimitError) else "the platform is busy"
            return grpc.StatusCode.RESOURCE_EXHAUSTED, f"{reason}; try again in {retry_after(error)} s"
        case _ if isinstance(error, (*REPLICA_LOST, DeploymentUnavailableError)):
            return grpc.StatusCode.UNAVAILABLE, A_REPLICA_LOST
        case UnavailableError():
            return grpc.StatusCode.UNAVAILABLE, str(error)
        case TimeoutError():
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the answer took longer than the deadline"
    incident = uuid.uuid4().hex[:12]
    logger.error("incident %s", incident, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"{AN_INCIDENT}; the server's log has it as incident {incident}"


def retry_after(error: BaseException) -> int | None:
    """Seconds after which the client should try again; None if that would not help."""
    match error:
        case LimitError():
            return max(1, math.ceil(error.retry_after))
        case BackPressureError():
            return RETRY_SECONDS
    return None
