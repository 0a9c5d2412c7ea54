"""The mesh adaptation: messages over radios that carry 231 bytes at most, and lose some.

Pure, in the spirit of SCHC (RFC 8724): bytes and events in, bytes and events out, ``now``
(monotonic seconds) as an argument, the next deadline on request. The frames are told in
``docs/mesh.md``.

:mod:`.framing` reads and writes frames, :mod:`.elision` leaves out of a packet what both
sides know, :mod:`.fragments` cuts what is too long and puts it together again,
:mod:`.repeats` sends messages that nobody takes custody of, :mod:`.sender` is a node's way
up, :mod:`.receiver` is what both sides hear with, :mod:`.echo` answers pings.
"""
