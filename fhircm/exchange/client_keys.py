"""The hub's private keys as a client: one or several for each partner, of which one signs and all are published; and how they take turns.

https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html#registering-a-client-communicating-public-keys. A key is a file
of keys_dir, named after its partner: north-clinic.json, then north-clinic.2.json and so on. Partners keep what they fetched of the hub's
JWKS for a while, so a new key is published first and signs later, and the one before stays published until it is retired. When each
begins to sign stands in its file (`nbf`, seconds since the epoch): a folder that is copied or restored keeps it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

log = logging.getLogger("fhircm.exchange.client_keys")

ASSERTION_SECONDS = 240  # for which an assertion is good: SMART allows 300, and clocks differ
Key = RSAKey | ECKey
_OURS = ("iat", "nbf")  # members of a key's file that are not published: when it was made, and since when it signs


class KeyWrong(Exception):
    """A key cannot be used, or cannot take its turn now; the message names it and how to mend that."""


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key in its file. `since`: from when on it signs, in seconds since the epoch; 0 for the first of its partner."""

    path: Path
    key: Key
    since: float

    @property
    def algorithm(self) -> str:
        """RS384 or ES384."""
        return str(self.key.as_dict(private=False).get("alg"))

    @property
    def kid(self) -> str:
        """By what the partner finds it."""
        return str(self.key.kid)


def signing_key(keys_dir: Path, name: str, algorithm: str) -> Key:
    """The key that signs at `name` now, made when there is none; of two that make it at once, one wins.

    `algorithm` is RS384 or ES384. Raises KeyWrong for a file that is not such a key.
    """
    return signing_keys(keys_dir, name, algorithm)[0]


def signing_keys(keys_dir: Path, name: str, algorithm: str, now: Callable[[], float] = time.time) -> list[Key]:
    """The key that signs now, and behind it those before it that are still published, the latest first. Raises KeyWrong."""
    first = keys_dir / f"{name}.json"
    if not any(_files(keys_dir, name)):
        _make(first, algorithm, now(), 0.0)
    held = held_keys(keys_dir, name)
    usable = [one.key for one in held if one.since <= now() and one.algorithm == algorithm]
    if not usable:
        remedy = "move the file away, and a new key is made"
        raise KeyWrong(f"{held[0].path} is a key for {held[0].algorithm}, and {algorithm} is wanted: {remedy}")
    return usable


def held_keys(keys_dir: Path, name: str) -> list[HeldKey]:
    """Every key for a partner: the one that signs last comes first. Raises KeyWrong."""
    return sorted((_read(path) for path in _files(keys_dir, name)), key=lambda one: (-one.since, one.path.name))


def rotate(keys_dir: Path, name: str, algorithm: str, wait: float, now: Callable[[], float] = time.time) -> HeldKey:
    """Make and publish the next key, which signs after `wait` seconds. With a wait of 0, a key that waits already signs from now on.

    Raises KeyWrong when one waits already.
    """
    begun = now()
    signing_key(keys_dir, name, algorithm) if not any(_files(keys_dir, name)) else None
    held = held_keys(keys_dir, name)
    for waiting in (one for one in held if one.since > begun):
        if wait > 0 or waiting.algorithm != algorithm:
            raise KeyWrong(f"{waiting.kid} waits already to sign at {name}: let it take its turn first, or give --now")
        _write(waiting.path, waiting.key, begun, over=True)
        return _read(waiting.path)
    numbers = [int(found[1]) for one in held if (found := re.search(r"\.(\d+)\.json$", one.path.name))]
    path = keys_dir / f"{name}.{max([1, *numbers]) + 1}.json"
    if not _make(path, algorithm, begun, begun + wait):
        raise KeyWrong(f"Another process made {path} just now: see what keys there are, and try again")
    return _read(path)


def retire(keys_dir: Path, name: str, algorithm: str, now: Callable[[], float] = time.time) -> list[HeldKey]:
    """Destroy the keys that do not sign any more: they are published no longer. Raises KeyWrong while their last assertions may be good."""
    begun = now()
    signs, *before = [one for one in held_keys(keys_dir, name) if one.since <= begun] or [None]
    if signs is None or not before:
        raise KeyWrong(f"No key for {name} can be retired: only one signs or signed; fhircm keys rotate {name} makes the next")
    if signs.algorithm != algorithm:
        raise KeyWrong(f"{signs.kid} is for {signs.algorithm}, and partner.yaml says {algorithm}: change algorithm there first")
    left = signs.since + 2 * ASSERTION_SECONDS - begun
    if left > 0:
        raise KeyWrong(f"Assertions that the key before signed may still be on their way: retire it in {int(left) + 1} seconds")
    for one in before:
        one.path.unlink()
    return before


def public_jwks(keys_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The public halves of all keys of a folder, for /.well-known/jwks.json. What is no private key is passed over."""
    keys = []
    for path in sorted(keys_dir.glob("*.json")):
        try:
            public = _read(path).key.as_dict(private=False)
        except KeyWrong as error:
            log.warning("%s", error)
        else:
            keys.append({name: value for name, value in public.items() if name not in _OURS})
    return {"keys": keys}


def _files(keys_dir: Path, name: str) -> Iterator[Path]:
    for path in sorted(keys_dir.glob(f"{name}*.json")):
        if re.fullmatch(re.escape(name) + r"(\.\d+)?\.json", path.name):
            yield path


def _make(path: Path, algorithm: str, made: float, since: float) -> bool:
    """Whether this process made the file, and not another one just before."""
    use = {"use": "sig", "alg": algorithm}
    if algorithm == "RS384":
        key: Key = RSAKey.generate_key(3072, use, auto_kid=True)
    elif algorithm == "ES384":
        key = ECKey.generate_key("P-384", use, auto_kid=True)
    else:
        raise KeyWrong(f"{algorithm} is not an algorithm of SMART: RS384 or ES384")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _write(path, key, since, made=made)


def _write(path: Path, key: Key, since: float, *, made: float | None = None, over: bool = False) -> bool:
    """Write a key's file, whole or not at all; False when it is there already and may not be written over."""
    tree = dict(key.as_dict(private=True))
    tree |= {"nbf": since} if since else {}
    tree |= {"iat": made} if made is not None else {}
    mine = path.with_name(f".{path.name}.{uuid4().hex}")
    descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(tree, file)
            file.flush()
            os.fsync(file.fileno())
        if over:
            mine.replace(path)
        else:
            os.link(mine, path)  # fails when another process was first: then its key is the key
    except FileExistsError:
        log.debug("another process made %s", path.name)
        return False
    finally:
        mine.unlink(missing_ok=True)
    return True


def _read(path: Path) -> HeldKey:
    try:
        tree = json.loads(path.read_bytes())
        kind: type[Key] = {"RSA": RSAKey, "EC": ECKey}[tree["kty"]]  # type: ignore[assignment]
        key = kind.import_key(tree)
        since = float(tree.get("nbf", 0.0))
    except OSError as error:
        raise KeyWrong(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, JoseError):
        raise KeyWrong(f"{path} is not a private key as JWK: move it away, and a new key is made") from None
    if not key.is_private or not isinstance(tree.get("kid"), str):
        raise KeyWrong(f"{path} is not a private key with a kid: move it away, and a new key is made")
    if path.stat().st_mode & 0o077:
        log.warning("%s can be read by others than its owner: chmod 600 it", path)
    return HeldKey(path, key, since)
