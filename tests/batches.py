"""Those who come at once, met in a batch."""

from tests.processes import wait_until


def hold_first(batches, count):
    """Computes the first batch when all `count` items are there. Returns the sizes of batches, as they are computed."""
    function, sizes = batches._function, []

    def held(items):
        if not sizes:
            wait_until(lambda: len(items) + len(batches._waiting) == count, 60, 0.01)
        sizes.append(len(items))
        return function(items)

    batches._function = held
    return sizes
