"""What stands where: an agent's area, a call's record, a start's slot, and the descriptors they speak of.

The assembler texts repeat the numbers of the first two; a unit test compares. A change of meaning raises `VERSION`,
which stands at the head of every area; a keeper serves the last two. Everything is little-endian, words of 64 bits.

An area is mapped at `AREA` in its agent and nowhere else: no child has it (MADV_DONTFORK). A start's slot is a file of
its own, mapped at `SLOT` only while the child is born, and from then on in this child alone. What a child still has to
do once others may see it, it does from private memory at `PRIVATE`. As all addresses are fixed, a batch that was
compiled once needs no relocation.
"""

import struct

MAGIC = 0x47415243  # "CRAG"
VERSION = 1

# --- the area ------------------------------------------------------------------------------------------------------

AREA = 0x50_0000  # beside the program: one page table for both
AREA_SIZE = 0x2000
ASKED = 0x08
"""Number of the batch that the keeper wrote last; set when the batch is whole."""
DONE = 0x10
"""Number of the batch that was run last, to its end or to its first failure. This is the truth, answers may be lost."""
FAILED = 0x18
"""Address of the record that stopped that batch, or 0."""
RUNG = 0x20
"""What the last doorbell said: the number of the batch to run. 0 asks for an answer only."""
ANSWERED = 0x28
"""The same once the answer has been sent, or could not be: who has none by then gets none."""
RECEIVE = 0x30
RECEIVE_NAMELEN = 0x38
RECEIVE_CONTROLLEN = 0x58
ANSWER = 0x68
ANSWER_NAMELEN = 0x70
ANSWER_CONTROLLEN = 0x90
_RECEIVE_IOVEC = 0xA0
_ANSWER_IOVEC = 0xB0
_NAME = 0xC0
RECEIVED = 0x140
"""Control message of the last doorbell; its descriptors begin 16 bytes further on."""
SENT = 0x550
"""Control message of the next answer."""
FIRST = 0x960
"""The first record of a batch."""
NAME_SIZE = 110
CONTROL_SIZE = 1032  # CMSG_SPACE of SCM_MAX_FD descriptors (unix(7))
CMSG_DATA = 16

_HEAD = struct.Struct("<IIQQQQ")
_MSGHDR = struct.Struct("<7Q")


def fresh_area() -> bytes:
    """Return the area of an agent that has yet to be born."""
    area = bytearray(AREA_SIZE)
    _HEAD.pack_into(area, 0, MAGIC, VERSION, 0, 0, 0, 0)
    _MSGHDR.pack_into(area, RECEIVE, AREA + _NAME, NAME_SIZE, AREA + _RECEIVE_IOVEC, 1, AREA + RECEIVED, 0, 0)
    _MSGHDR.pack_into(area, ANSWER, AREA + _NAME, 0, AREA + _ANSWER_IOVEC, 1, AREA + SENT, 0, 0)
    struct.pack_into("<QQ", area, _RECEIVE_IOVEC, AREA + RUNG, 8)
    struct.pack_into("<QQ", area, _ANSWER_IOVEC, AREA + DONE, 16)
    return bytes(area)


# --- a call's record -------------------------------------------------------------------------------------------------

CALL = struct.Struct("<iI6Qq4H4Q")
"""Number; control word; six arguments; result; errnos that are no error; `other`, where to go on in the condition that
the control word names; and what is expected after the call: (word at address) & mask == value."""
RECORD = CALL.size
CONTROL, ARGUMENTS, RESULT, ERRNOS, OTHER, ADDRESS, MASK, VALUE = 4, 8, 56, 64, 72, 80, 88, 96
END = -1
"""A batch ends here. A child that gets so far reports it: its last call should have been execve."""
# The control word: two bits an argument, then flags, then the record's index from bit 16 on
WORD, HALF = 1, 2
"""An argument is not its value, but the address of a word, or of half a one, that is."""
EXPECT = 1 << 12
ELSE = 1 << 13
"""An expectation that fails is no failure: go on at `other`."""
OK = 1 << 14
"""Go on at `other` after success; without this flag and the next one, after one of the errnos."""
CHILD = 1 << 15
"""Who gets the result 0 is a new process, and goes on at `other`. With END: become an agent."""
INDEX_SHIFT = 16

# --- slots -----------------------------------------------------------------------------------------------------------

SLOT = 0x2_0000_0000
PRIVATE = 0x3_0000_0000
PAGE = 0x10000  # the largest that the two machines have

# --- descriptors -----------------------------------------------------------------------------------------------------

SOCKET = 3
"""An agent's own socket; in a child, the end of the pair through which it reports and waits."""
AREA_FD = 4
"""Only until the agent has mapped it."""
RECEIVED_FIRST, RECEIVED_LAST = 4, 23
"""Where descriptors that come with a doorbell land: free between batches."""
STAGE = 24
"""Where those for the next child stand, in the order of `Stage`, until it is born."""
STAGE_LAST = 39
HELD = 40
"""From here on an agent holds: first the pod's own (`HELD_*`), then blocks of `BLOCK` for each container and exec."""
HELD_POD, HELD_PROC, HELD_NETNS, HELD_ROUTE, HELD_FILES = range(40, 45)
"""The pod's own tmpfs, the procfs of its PID namespace; what others complete it by: its network namespace, a route
socket in it, the directory of its files."""
BLOCK = 8


class Stage:
    """What a child finds at birth, and where."""

    SLOT = STAGE
    REPORT = STAGE + 1
    STDIN = STAGE + 2
    STDOUT = STAGE + 3
    STDERR = STAGE + 4
    TARGET = STAGE + 5  # pidfd of the process whose namespaces are joined
    GROUP = STAGE + 6  # the v2 group to be born in


class Own:
    """A child's descriptors once it has put them in order; from `FREE` on they come as it opens them."""

    REPORT = SOCKET
    POD = 4
    MASTER = 4  # a terminal's; what is the pod's is held as mounts by then
    PROC = 5
    TARGET = 6
    SLOT = 7
    FREE = 8


def block(number: int) -> int:
    """Return the first descriptor of a container's or exec's block; block 0 is the pod's own."""
    return HELD + BLOCK * number
