"""The Noise handshake (wire spec, section 2.2).

Parts floor: knows handshake patterns and nothing of what runs over the keys. No randomness: keys are passed in.
"""

from __future__ import annotations
