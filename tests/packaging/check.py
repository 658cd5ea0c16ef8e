#!/usr/bin/env python3
"""Checks the files for deployment and the documented interfaces, without Docker or a cluster.

    tests/services/get python promtool
    .tools/venv/bin/python tests/packaging/check.py

containers   Dockerfile and Compose file
cluster      Kubernetes manifests and systemd unit
monitoring   alerts, dashboard, and the names of metrics in all documents
interface    AsyncAPI document, JSON Schemas, examples

Prints each finding, and exits with 1 if there is any.
"""

import sys

import cluster
import containers
import interface
import monitoring


def main():
    found = 0
    for part in (containers, cluster, monitoring, interface):
        for finding in part.findings():
            found += 1
            print(finding, file=sys.stderr)
    print(f"packaging: {found} findings")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
