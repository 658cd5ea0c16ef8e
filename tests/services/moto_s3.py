#!/usr/bin/env python3
"""moto's S3 server with two users, whose signatures and permissions it checks.

    tests/services/moto_s3.py PORT KEYS_FILE READER_POLICY

The owner may do everything. The reader may do what the policy allows, a document of deploy/s3. KEYS_FILE gets the
users' access keys and secrets as JSON. Objects are kept in memory. Run it with the Python of .tools/venv.
"""

import json
import os
import sys

from moto import settings
from moto.iam.models import iam_backends
from moto.moto_server import utilities
from moto.server import main as serve
from werkzeug.serving import WSGIRequestHandler

LOOPBACK = "127.0.0.1"
ACCOUNT = "123456789012"
OWNER_POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


def add_user(name, policy):
    """Returns the user's access key and secret."""
    backend = iam_backends[ACCOUNT]["aws"]
    backend.create_user("us-east-1", name)
    backend.put_user_policy(name, "permissions", json.dumps(policy))
    key = backend.create_access_key(name)
    return {"access_key": key.access_key_id, "secret_key": key.secret_access_key}


def accept_line_breaks_in_keys():
    """A dot in moto's routes and permissions matches no line break, which an S3 key may hold."""
    from moto.iam.access_control import IAMPolicyStatement

    converter_init = utilities.RegexConverter.__init__

    def init(self, url_map, *items):
        converter_init(self, url_map, *items)
        self.regex = f"(?s:{self.regex})"

    utilities.RegexConverter.__init__ = init
    match = IAMPolicyStatement._match
    IAMPolicyStatement._match = staticmethod(lambda pattern, string: match(pattern, string.replace("\n", " ")))


def main(port, keys_file, reader_policy):
    with open(reader_policy) as file:
        users = {"owner": add_user("owner", OWNER_POLICY), "reader": add_user("reader", json.load(file))}
    with open(f"{keys_file}.new", "w") as file:
        json.dump(users, file)
    os.rename(f"{keys_file}.new", keys_file)
    accept_line_breaks_in_keys()
    # From now on every request is authenticated.
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    # A line in the log for each request costs more than it helps.
    WSGIRequestHandler.log_request = lambda *_: None
    serve(["--host", LOOPBACK, "--port", port])


if __name__ == "__main__":
    main(*sys.argv[1:])
