"""The scripts that change anything in the server, each of them whole or not at all.

Knows the fields of the head and how a server carries out a script; it must not know what is in the files, nor who
calls. See docs/decisions/redis-layout.md.

A script is not rolled back when it fails in its middle, so none of ours can: what could be refused (the writer, the
type of every key it touches) is looked at before the first write, and the first write is one that a full server
refuses. After it, a server lets a script finish.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

#: The version of the layout, in the head's field `format`.
FORMAT: Final = b"1"

#: A string of this length and what the server keeps with it fill 64 KiB, a size that its allocator has; 65,536 bytes
#: would take 80 KiB.
PAGE_BYTES: Final = 65_520

#: What a command for the server is made of.
Argument = bytes | str | int | float
Command = tuple[Argument, ...]


class Script:
    """A script, sent by its digest; the server is given the text when it does not know it (`NOSCRIPT`)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Command:
        return ("EVALSHA", self._digest, len(keys), *keys, *arguments)

    def in_full(self, command: Command) -> Command:
        """The same call for a server that does not know the script yet."""
        return ("EVAL", self.text, *command[2:])


# The server's own clock, in milliseconds; no clock of a client counts.
_NOW: Final = """
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# What takes no room, or next to none, is done in a full server too: it only asks before a script's first write, and
# does not before one that removes something, be it nothing.
_WITHOUT_ROOM: Final = """
redis.call('HDEL', KEYS[1], '')
"""

# Whoever is not the writer of the head hears who is.
_FENCE: Final = """
local found = redis.call('HMGET', KEYS[1], 'writer', 'sequence', 'epoch', 'holder')
if found[1] ~= ARGV[1] then
  return {'refused', found[1], found[2], found[3], found[4]}
end
"""

#: KEYS: head, guard. ARGV: who, lease in ms, the holder's description, 1 to take over, the sequence seen last.
ACQUIRE: Final = Script(
    _NOW
    + """
local found = redis.call('HMGET', KEYS[1], 'format', 'epoch', 'writer', 'until', 'holder', 'sequence')
if redis.call('EXISTS', KEYS[1]) == 1 then
  if found[1] ~= '1' then return {'format', found[1]} end
elseif redis.call('EXISTS', KEYS[2]) == 1 then
  return {'gone'}
end
local sequence, last, ends = tonumber(found[6] or '0'), tonumber(found[2] or '0'), tonumber(found[4] or '0')
if not (sequence and last and ends) then return {'damaged'} end
if sequence < tonumber(ARGV[5]) then return {'gone'} end
local time = now()
local other = found[3] and found[3] ~= '' and string.match(found[3], ':(.*)$') ~= ARGV[1]
if ARGV[4] ~= '1' and other and ends > time then
  return {'held', found[5], string.format('%.0f', ends - time)}
end
local epoch = string.format('%.0f', last + 1)
local writer = epoch .. ':' .. ARGV[1]
"""
    + _WITHOUT_ROOM
    + """
redis.call('HSET', KEYS[1], 'format', '1', 'epoch', epoch, 'writer', writer, 'holder', ARGV[3],
  'until', string.format('%.0f', time + ARGV[2]), 'sequence', found[6] or '0')
redis.call('SETNX', KEYS[2], '1')
return {'mine', writer, redis.call('HGETALL', KEYS[1])}
"""
)

#: The same writer over a new connection. A higher epoch, so that nothing it sent over the old one can land any more.
#: KEYS: head. ARGV: who, lease in ms.
RESUME: Final = Script(
    _NOW
    + """
local found = redis.call('HMGET', KEYS[1], 'writer', 'sequence', 'epoch', 'holder')
if not found[1] or string.match(found[1], ':(.*)$') ~= ARGV[1] then
  return {'refused', found[1], found[2], found[3], found[4]}
end
local epoch = string.format('%.0f', found[3] + 1)
local writer = epoch .. ':' .. ARGV[1]
"""
    + _WITHOUT_ROOM
    + """
redis.call('HSET', KEYS[1], 'epoch', epoch, 'writer', writer, 'until', string.format('%.0f', now() + ARGV[2]))
return {'mine', writer, redis.call('HGETALL', KEYS[1])}
"""
)

#: One mutation. KEYS: head, then every page it touches, then what was put aside for it. ARGV: writer, last sequence,
#: this one, lease in ms, 1 if it takes no room, how many were put aside, how many of the next are fields and values of
#: the head, those, how many fields go, those, then four for each operation: verb, key, offset or size, data or size.
COMMIT: Final = Script(
    _NOW
    + _FENCE
    + """
if found[2] ~= ARGV[2] then
  return {'refused', found[1], found[2], found[3], found[4]}
end
local lengths = {}
for key = 2, #KEYS do
  lengths[key] = redis.call('STRLEN', KEYS[key])
  if lengths[key] == 0 and key > #KEYS - ARGV[6] then return {'unstaged'} end
end
if ARGV[5] == '1' then redis.call('HDEL', KEYS[1], '') end
redis.call('HSET', KEYS[1], 'sequence', ARGV[3], 'until', string.format('%.0f', now() + ARGV[4]))
local at = 8
local stop = at + ARGV[7]
while at < stop do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  at = at + 2
end
stop = at + 1 + ARGV[at]
at = at + 1
while at < stop do
  redis.call('HDEL', KEYS[1], ARGV[at])
  at = at + 1
end
while at < #ARGV do
  local verb, place, size, data = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]
  local key = KEYS[place]
  if verb == 'write' then
    redis.call('SETRANGE', key, size, data)
  elseif verb == 'grow' then
    if lengths[place] == 0 then
      redis.call('SETRANGE', key, PAGE - 1, '\\0')
      lengths[place] = PAGE
    end
    redis.call('SETRANGE', key, size, data)
  elseif verb == 'whole' then
    redis.call('SET', key, data)
    lengths[place] = PAGE
  elseif verb == 'cut' then
    if redis.call('STRLEN', key) > tonumber(size) then
      redis.call('SET', key, redis.call('GETRANGE', key, 0, size - 1))
    end
  elseif verb == 'zero' then
    local count = math.min(redis.call('STRLEN', key) - size, tonumber(data))
    if count > 0 then redis.call('SETRANGE', key, size, string.rep('\\0', count)) end
  elseif verb == 'drop' then
    redis.call('UNLINK', key)
    lengths[place] = 0
  elseif verb == 'rename' then
    redis.call('RENAME', KEYS[tonumber(data)], key)
    lengths[place] = PAGE
  elseif verb == 'copy' then
    redis.call('SETRANGE', key, size, redis.call('GET', KEYS[tonumber(data)]))
    redis.call('UNLINK', KEYS[tonumber(data)])
    lengths[place] = math.max(1, lengths[place])
  end
  at = at + 4
end
return 1
""".replace("PAGE", str(PAGE_BYTES))
)

#: Part of a commit that is too large for one command, put aside. KEYS: head, keys. ARGV: writer, the head's field
#: for what was put aside, its value, then what goes to each key.
STAGE: Final = Script(
    _FENCE
    + """
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
for key = 2, #KEYS do
  redis.call('SET', KEYS[key], ARGV[key + 2])
end
return 1
"""
)

#: Remove pages that nobody can see any more. KEYS: head, pages. ARGV: writer, the head's field that names them, what
#: it says now (nothing: it goes).
SWEEP: Final = Script(
    _FENCE
    + _WITHOUT_ROOM
    + """
redis.call('UNLINK', unpack(KEYS, 2))
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[2])
else
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
end
return 1
"""
)

#: KEYS: head. ARGV: writer, lease in ms.
RENEW: Final = Script(
    _NOW
    + _FENCE
    + _WITHOUT_ROOM
    + """
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now() + ARGV[2]))
return 1
"""
)

#: Give the lease back, and leave nothing where nothing is. KEYS: head, guard. ARGV: writer.
RELEASE: Final = Script(
    _FENCE
    + _WITHOUT_ROOM
    + """
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local first = string.sub(field, 1, 1)
  if first == '/' or first == '-' then
    redis.call('HSET', KEYS[1], 'writer', '', 'until', '0')
    return 1
  end
end
redis.call('UNLINK', KEYS[1], KEYS[2])
return 1
"""
)
