"""Shrinking on a fat binary that is made here."""

import struct
import unittest

import slim

PADDING = 37


def entry(kind, architecture, code, header=64):
    begin = struct.pack("<HHIQ", kind, 0x101, header, len(code))
    return (
        begin.ljust(slim.ARCHITECTURE, b"\1")
        + struct.pack("<I", architecture).ljust(header - slim.ARCHITECTURE, b"\2")
        + code
    )


def binary(*entries):
    body = b"".join(entries)
    return slim.MAGIC + struct.pack("<HHQ", slim.VERSION, slim.HEADER, len(body)) + body


def compressed(content):
    """A zstd frame of one block that is stored as it stands (RFC 8878), padded as compilers pad it."""
    frame = slim.ZSTD + b"\x20" + bytes([len(content)]) + (len(content) << 3 | 1).to_bytes(3, "little") + content
    return frame + bytes(-len(frame) % 8)


class Slim(unittest.TestCase):
    def setUp(self):
        self.ours, self.attention = b"conv kernel" * 9, compressed(b"flash_fwd_kernel" * 4)
        self.library = bytearray(
            b"\x7fELF".ljust(PADDING, b"\3")
            # By chance, and by chance right at the end of everything.
            + slim.MAGIC
            + b"not a header at all"
            + binary(entry(2, 80, b"old" * 20), entry(2, 90, self.ours), entry(1, 90, b"ptx" * 20, header=72))
            + b"\4" * PADDING
            + binary(entry(2, 90, self.attention), entry(2, 120, b"new" * 20))
            + slim.MAGIC
        )
        self.before = bytes(self.library)

    def test_one_architecture_is_left_and_nothing_moves(self):
        done = slim.slim(self.library, 90)
        self.assertEqual(done.kept, {90: len(self.ours) + len(self.attention)})
        self.assertEqual(done.removed, {80: 60, 90: 60, 120: 60})
        expected = self.before
        for gone in (b"old" * 20, b"ptx" * 20, b"new" * 20):
            expected = expected.replace(gone, bytes(60))
        self.assertEqual(bytes(self.library), expected)

    def test_what_names_a_word_goes_though_it_is_compressed_and_is_no_longer_offered(self):
        done = slim.slim(self.library, 90, without=slim.LANGUAGE)
        self.assertEqual(done.kept, {90: len(self.ours)})
        self.assertIn(self.ours, self.library)
        self.assertNotIn(self.attention, self.library)
        offered = [e[1] for b in slim.fat_binaries(self.library) for e in slim.entries(self.library, *b) if e[0] == 2]
        self.assertEqual(offered, [80, 90, 120, 120])

    def test_an_architecture_that_is_not_there_is_refused_with_those_that_are(self):
        with self.assertRaisesRegex(ValueError, "architecture 75; there was for: 80, 90, 120"):
            slim.slim(self.library, 75)

    def test_an_entry_that_leads_beyond_its_binary_ends_it(self):
        long = bytearray(binary(entry(2, 90, b"code" * 8)))
        struct.pack_into("<Q", long, slim.HEADER + 8, 1 << 40)
        with self.assertRaises(ValueError):
            slim.slim(long, 90)


if __name__ == "__main__":
    unittest.main()
