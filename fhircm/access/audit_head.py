"""The end of the chain, signed: whoever keeps it elsewhere can tell later whether the end was cut off, or the chain written anew.

https://www.rfc-editor.org/rfc/rfc7515. The key is one of the hub's own, which /.well-known/jwks.json publishes.
"""

from __future__ import annotations

import json
import time

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

ALGORITHM = "ES384"


class HeadWrong(Exception):
    """This is no head that the hub signed; the message says why."""


def signed(number: int, hash: bytes, key: ECKey) -> str:
    """A head as a compact JWS."""
    header = {"alg": ALGORITHM, "kid": key.kid, "typ": "audit-head"}
    payload = {"number": number, "hash": hash.hex(), "at": int(time.time())}
    return jws.serialize_compact(header, json.dumps(payload), key, algorithms=[ALGORITHM])


def read(text: str, key: ECKey) -> tuple[int, bytes]:
    """Number and hash. Raises HeadWrong."""
    try:
        found = jws.deserialize_compact(text.strip(), key, algorithms=[ALGORITHM])
        tree = json.loads(found.payload)
        return int(tree["number"]), bytes.fromhex(tree["hash"])
    except (JoseError, ValueError, KeyError, TypeError):
        raise HeadWrong("This is no head that this hub has signed with the key that it has now") from None
