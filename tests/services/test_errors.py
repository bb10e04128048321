"""What goes wrong, as clients see it."""

from services.errors import NotFoundError, status_of


def test_no_detail_of_an_internal_error_reaches_the_client():
    code, message = status_of(RuntimeError("secret=hunter2"))
    assert code.name == "INTERNAL"
    assert "hunter2" not in message
    assert "incident" in message
    assert status_of(NotFoundError("image_id: no image 'x'"))[0].name == "NOT_FOUND"
