"""The protocol core: pure functions and state machines, no I/O, no clock, no thread.

Bytes and events go in, bytes and events come out; time is an argument. Whatever
imports a socket, a file or a clock belongs in a store, a link or a runtime.
"""
