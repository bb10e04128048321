"""Who may call what, and how often: `tokens` know who, `limits` how often, and `admission` asks both about every call."""

from services.access.admission import Access, is_loopback
from services.access.limits import Limit, open_limits
from services.access.tokens import Scope, TokenFile, create_token, list_tokens, revoke_token

__all__ = [
    "Access",
    "Limit",
    "Scope",
    "TokenFile",
    "create_token",
    "is_loopback",
    "list_tokens",
    "open_limits",
    "revoke_token",
]
