"""API keys of a server, made on the command line."""

import json
import sys
from argparse import Namespace

from nextvec.bank.layout import write_atomically
from nextvec.errors import ServingError, SettingsError
from nextvec.serving.keys import Key, read_keys
from nextvec.serving.rights import RIGHTS


def add_key(arguments: Namespace) -> int:
    """Add the key of ``--add-key`` to the file of ``--keys``, print its secret, and return exit code 0.

    Raises:
        SettingsError: no file, no name, or a right that does not exist.
        ServingError: the file has a key of that name.
    """
    name, _, rights = arguments.add_key.partition(":")
    chosen = rights.split(",") if rights else ["predict", "session"]
    if arguments.keys is None or not name or not set(chosen) <= set(RIGHTS):
        raise SettingsError(f"--add-key wants --keys FILE and NAME:RIGHT,RIGHT with rights among {', '.join(RIGHTS)}")
    held = list(read_keys(arguments.keys)) if arguments.keys.exists() else []
    if any(key.name == name for key in held):
        raise ServingError(f"{arguments.keys} has a key {name!r} already; remove it first")
    key, secret = Key.new(name, chosen)
    write_atomically(arguments.keys, json.dumps([k.to_json() for k in [*held, key]], indent=1) + "\n")
    arguments.keys.chmod(0o600)
    print(json.dumps({"name": name, "secret": secret}) if arguments.json else secret)
    print("the secret is shown once; the file holds only its sha256", file=sys.stderr)
    return 0
