"""The state of a motor as one contiguous block of 15 bytes, gathered by indirect addressing.

position i32 | velocity i32 | effort i16 | voltage u16 | temperature u8 | hardware error u8 | moving u8

``DIRECT_BLOCK`` is the same state where the registers of all X models lie, Moving (122) to
Present_Temperature (146): ten bytes more, and the hardware error is not among them. It serves motors without
indirect addressing, which only `ratchet bench bus` accepts.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hal.dynamixel.tables import Model

BLOCK = np.dtype(
    [
        ("position", "<i4"),
        ("velocity", "<i4"),
        ("effort", "<i2"),
        ("voltage", "<u2"),
        ("temperature", "u1"),
        ("hardware_error", "u1"),
        ("moving", "u1"),
    ]
)
BLOCK_BYTES = BLOCK.itemsize

DIRECT_ADDRESS = 122
DIRECT_BLOCK = np.dtype(
    {
        "names": ["moving", "effort", "velocity", "position", "voltage", "temperature"],
        "formats": ["u1", "<i2", "<i4", "<i4", "<u2", "u1"],
        "offsets": [0, 4, 6, 10, 22, 24],
        "itemsize": 25,
    }
)

VELOCITY_UNIT = 0.229 * 2 * math.pi / 60
"""rad/s per register unit (0.229 rev/min)."""
EFFORT_UNIT = 0.001
"""A per 1 mA, and fraction of full load per 0.1 %: the same factor for both kinds of motor."""
VOLTAGE_UNIT = 0.1


def block_addresses(model: Model) -> list[int]:
    """The address behind each byte of the block, in order."""
    registers = (
        model["Present_Position"],
        model["Present_Velocity"],
        model.effort,
        model["Present_Input_Voltage"],
        model["Present_Temperature"],
        model["Hardware_Error_Status"],
        model["Moving"],
    )
    return [register.address + i for register in registers for i in range(register.size)]


def as_rows(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    """A view of uint8 (n, 15) as n records of ``BLOCK``; of (n, 25) as ``DIRECT_BLOCK``."""
    return blocks.view(BLOCK if blocks.shape[1] == BLOCK_BYTES else DIRECT_BLOCK)[:, 0]
