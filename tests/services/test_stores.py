"""Images between questions."""

from concurrent.futures import ThreadPoolExecutor

from services.stores import ImageStore


def test_evicts_the_least_recently_used(tmp_path):
    store = ImageStore(tmp_path / "images", max_bytes=250)
    first = store.put(b"a" * 100)
    assert store.put(b"a" * 100) == first
    second = store.put(b"b" * 100)
    assert store.get(first) == b"a" * 100
    store.put(b"c" * 100)
    assert store.get(second) is None
    assert store.get(first) == b"a" * 100


def test_ids_are_not_paths(tmp_path):
    (tmp_path / "secret").write_text("x")
    store = ImageStore(tmp_path / "images", max_bytes=250)
    for name in ("../secret", "sha256:../secret", "/etc/passwd", "sha256:" + "/" * 64, ""):
        assert store.get(name) is None


def test_many_at_once(tmp_path):
    """Replicas share the directory: files come and go under each other's hands."""
    images = [bytes([i]) * 100 for i in range(20)]

    def put_and_get(turn):
        store = ImageStore(tmp_path / "images", max_bytes=500)
        data = images[turn % len(images)]
        assert store.get(store.put(data)) in (data, None)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put_and_get, range(600)))
