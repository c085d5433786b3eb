"""Frames, handshake, and the encryption of messages (wire spec, section 2).

Parts floor: bytes in, plaintext messages out. It knows nothing of what a message says.
"""

from __future__ import annotations
