"""A decoder that forwards everything to the real one, and misbehaves as the comment of an image asks.

Called as `decoder.py decoder` by a worker, with a socket as standard input. REAL is set by the test.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time


def take(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            sys.exit(0)
        data += part
    return data


def receive(sock):
    return json.loads(take(sock, struct.unpack("<I", take(sock, 4))[0]))


def send(sock, message, tail=b""):
    body = json.dumps(message).encode()
    sock.sendall(struct.pack("<I", len(body)) + body + tail)


def hash_of_quality(quality):
    view = {"frame": 0, "background": "white", "orientation": 1}
    return {"view": view, "pdq": "0" * 64, "quality": quality}


def lie(views):
    return {"Decoded": {"format": "png", "width": 1, "height": 1, "frames": 1, "damage": "", "views": views}}


def misbehave(image, worker):
    for mark in (b"DIE", b"KILL", b"ONCE", b"HANG", b"SPIN", b"WAIT", b"LIE", b"BOAST", b"EVIL", b"AHEAD", b"LEAVE"):
        if b"please " + mark in image:
            with open(__file__ + ".tries", "a") as tries:
                tries.write(mark.decode() + "\n")
            if mark == b"DIE":
                os.kill(os.getpid(), signal.SIGSEGV)
            if mark == b"KILL" and tried(mark) <= 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if mark == b"ONCE" and tried(mark) == 1:
                os.kill(os.getpid(), signal.SIGSEGV)
            if mark == b"HANG":
                time.sleep(3600)
            if mark == b"SPIN":
                while True:
                    pass
            if mark == b"WAIT":
                time.sleep(1.5)
            if mark == b"LIE":
                send(worker, lie([hash_of_quality(100)] * 100))
            if mark == b"BOAST":
                send(worker, lie([hash_of_quality(101)]))
            if mark == b"EVIL":
                send(worker, {"Evil\0\nforged line \x1b[31m" + "A" * 3000: {}})
            return mark
    return None


def tried(mark):
    with open(__file__ + ".tries") as tries:
        return tries.read().count(mark.decode())


with open(__file__ + ".starts", "a") as starts:
    starts.write("start\n")
worker = socket.socket(fileno=0)
ours, theirs = socket.socketpair()
real = subprocess.Popen([REAL, "decoder"], stdin=theirs, env={})
theirs.close()
send(ours, receive(worker))
send(worker, receive(ours))
while True:
    order = receive(worker)["Image"]
    image = take(worker, order["bytes"])
    mark = misbehave(image, worker)
    send(ours, {"Image": order}, image)
    report = receive(ours)
    while "MemoryNeeded" in report:
        send(worker, report)
        send(ours, receive(worker))
        report = receive(ours)
    sizes = [geometry["width"] * geometry["height"] * 3 for geometry in order["geometries"]]
    pixels = take(ours, sum(sizes) * len(report["Decoded"]["views"])) if "Decoded" in report else b""
    send(worker, report, pixels)
    if mark == b"AHEAD":
        send(worker, {"Undecodable": {"reason": "an answer to what comes next"}})
    if mark == b"LEAVE":
        sys.exit(0)
