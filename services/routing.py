"""Which decoder a question goes to: the one that has read its picture, unless that one has too much to do."""

from __future__ import annotations

import math
import time
from hashlib import blake2b

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

_BOUND = 1.25
"""Times its share of all requests that a replica may have."""
_PATIENCE_SECONDS = 0.1
"""What has waited longer is served before what comes now."""


class PictureRouter(FIFOMixin, RequestRouter):
    """Rendezvous hashing of sessions, which are pictures here, with bounded loads; in the order of arrival.

    A replica that comes or goes moves only its own share of the pictures. A busy one leaves a picture to the next in the
    picture's order, which knows it from then on (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2018).
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas to try, one after the other."""
        session = pending_request.metadata.session_id if pending_request else ""

        def rank(replica: RunningReplica) -> bytes:
            return blake2b(f"{session} {replica.replica_id.unique_id}".encode(), digest_size=8).digest()

        loads = {each: self.replica_queue_len_cache.get(each.replica_id) or 0 for each in candidate_replicas}
        most = math.ceil(_BOUND * (sum(loads.values()) + 1) / max(1, len(loads)))
        return [[replica] for replica in sorted(candidate_replicas, key=lambda each: (loads[each] >= most, rank(each)))]

    def _get_pending_request_matching_metadata(self, request_metadata: object = None) -> PendingRequest | None:
        """Who gets the place that was found for a request: the request itself, or the first who waits for any."""
        first = next((each for each in self._pending_requests_to_fulfill if not each.future.done()), None)
        if first and time.time() - first.created_at > _PATIENCE_SECONDS:
            return first
        return self._get_pending_request_matching_internal_request_id(request_metadata)
