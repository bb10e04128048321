"""What goes wrong, as clients see it."""

import pytest
from grpc import StatusCode
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from ferret_core.geometry import RegionError
from services.errors import InvalidRequestError, NotFoundError
from services.status_codes import status_of


def test_no_detail_of_an_internal_error_reaches_the_client():
    code, message = status_of(RuntimeError("secret=hunter2"))
    assert code.name == "INTERNAL"
    assert "hunter2" not in message
    assert "incident" in message
    assert status_of(BackPressureError(1, 1)) == (StatusCode.RESOURCE_EXHAUSTED, "the platform is busy; try again in 2 s")
    assert status_of(NotFoundError("image_id: no image 'x'"))[0].name == "NOT_FOUND"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("zip() argument 2 is shorter than argument 1"),
        RayTaskError("Decode", "traceback", ValueError("features: 5 wide")).as_instanceof_cause(),
        RayTaskError("EncodeRegions", "traceback", RegionError("region: covers no pixel")).as_instanceof_cause(),
    ],
)
def test_what_is_wrong_with_us_is_not_the_clients_fault(error, caplog):
    """Although it is a `ValueError`, too."""
    code, message = status_of(error)
    assert code == StatusCode.INTERNAL
    assert message == f"internal error; the server's log has it as {caplog.messages[0]}"
    assert caplog.records[0].exc_info


@pytest.mark.parametrize("error", [InvalidRequestError("turn: must be less than 2"), RegionError("box: x2")])
def test_what_is_wrong_with_a_request_is_named(error, caplog):
    assert status_of(error) == (StatusCode.INVALID_ARGUMENT, str(error))
    assert not caplog.records
