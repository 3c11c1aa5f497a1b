"""Offscreen images of a world: one OpenGL context per process and image size, shared by all worlds."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import mujoco
import numpy as np

from hal.errors import BenchError
from hal.types import Image

log = logging.getLogger(__name__)


def _gl_context(width: int, height: int) -> Any:
    """An EGL context, or OSMesa where EGL has no device. Raises BenchError when neither works."""
    reasons = []
    for name in ("egl", "osmesa"):
        try:
            context = import_module(f"mujoco.{name}").GLContext(width, height)
            context.make_current()
        except (ImportError, AttributeError, RuntimeError) as error:
            reasons.append(f"{name}: {error}")
            continue
        log.debug("gl_context backend=%s size=%dx%d", name, width, height)
        return context
    raise BenchError(
        f"no offscreen OpenGL ({'; '.join(reasons)})", "install libegl1 or libosmesa6 to render the bench"
    )


class Renderer:
    """Draws any ``MjData`` of one model. Use it from one thread at a time.

    Shadows, reflections and multisampling are off: they cost more than the rest of the picture.
    """

    def __init__(self, mj: Any, width: int, height: int) -> None:
        self._gl = _gl_context(width, height)
        self._mj = mj
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(mj, maxgeom=64)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._context = mujoco.MjrContext(mj, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._pixels = np.empty((height, width, 3), dtype=np.uint8)

    def draw(self, data: Any, camera_id: int) -> Image:
        """The picture of fixed camera ``camera_id``: uint8 RGB (H, W, 3), a fresh array."""
        self._gl.make_current()
        self._camera.fixedcamid = camera_id
        mujoco.mjv_updateScene(
            self._mj, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._context)
        return np.ascontiguousarray(self._pixels[::-1])
