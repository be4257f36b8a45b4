"""Layouts and numbers of the NBD protocol, as it names them; everything is big endian.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: "Newstyle negotiation", "Fixed
newstyle negotiation", "Values". The INFO, GO and block size parts are "Option types" there.
"""

from __future__ import annotations

import struct
from typing import Final

# ---- handshake

NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9

GREETING: Final = struct.Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")  # IHAVEOPT, option, length of its data
OPTION_REPLY: Final = struct.Struct(">QIII")  # magic, option, reply type, length of its data
EXPORT: Final = struct.Struct(">QH")  # size, transmission flags
RESERVED: Final = bytes(124)  # behind EXPORT, unless C_NO_ZEROES

FIXED_NEWSTYLE: Final = 1 << 0
NO_ZEROES: Final = 1 << 1

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = (1 << 31) + 1
REP_ERR_POLICY: Final = (1 << 31) + 2
REP_ERR_INVALID: Final = (1 << 31) + 3
REP_ERR_UNKNOWN: Final = (1 << 31) + 6
REP_ERR_TOO_BIG: Final = (1 << 31) + 9

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

INFO_OF_EXPORT: Final = struct.Struct(">HQH")  # INFO_EXPORT, size, transmission flags
INFO_OF_BLOCKS: Final = struct.Struct(">HIII")  # INFO_BLOCK_SIZE, minimum, preferred, maximum

FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8

MAX_STRING: Final = 4096
"""Bytes of a name, a query or a message ("Conventions")."""

BASE_ALLOCATION: Final = b"base:allocation"

# ---- transmission

REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE_REPLY: Final = struct.Struct(">IIQ")  # magic, error, cookie
CHUNK: Final = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length of its payload
DATA_CHUNK: Final = struct.Struct(">IHHQIQ")  # the same, offset; then the bytes
HOLE_CHUNK: Final = struct.Struct(">IHHQIQI")  # the same, offset, size of the hole
ERROR: Final = struct.Struct(">IH")  # error, length of the message behind it
CONTEXT: Final = struct.Struct(">I")  # context's id; then descriptors
DESCRIPTOR: Final = struct.Struct(">II")  # length, state

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_TRIM: Final = 4
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3

REPLY_FLAG_DONE: Final = 1 << 0
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_BLOCK_STATUS: Final = 5
REPLY_ERROR: Final = (1 << 15) + 1
REPLY_ERROR_OFFSET: Final = (1 << 15) + 2

STATE_DATA: Final = 0
STATE_HOLE_ZERO: Final = (1 << 0) | (1 << 1)

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
EOVERFLOW: Final = 75
