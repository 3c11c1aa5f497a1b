"""One picture size of `ratchet bench loader`, in a process of its own: ``python -m tools.bench.loader_part``.

Prints its figures as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch

from episodes.decoding import decode_into
from episodes.store import EpisodeStore
from learner.config import DataConfig
from learner.data import Dataset
from learner.loader.batch import Window
from learner.loader.loader import Loader
from learner.loader.sampler import Part, Sampler
from learner.loading import load_dataset
from tools.bench.memory import resident_mb

CHUNK = 100
BATCH = 8
THREADS = 2
ROUNDS = 6
_LIMIT_PICTURES = 128  # of each camera, held as JPEG
_NO_RAM_GIB = 1e-9  # nothing is held decoded: what is measured is decoding


def main() -> None:
    """Measure the loader, the decoder alone, and the cache, in turns."""
    parser = argparse.ArgumentParser(description="random samples a second out of an episode store")
    parser.add_argument("store", type=Path)
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size = (options.size[0], options.size[1])
    print(json.dumps(measure(options.store, size, options.seconds)))


def measure(folder: Path, size: tuple[int, int], seconds: float) -> dict[str, float]:
    """The figures for pictures of ``size``; each of the three is measured for about ``seconds``.

    The decoder alone is measured where the store holds JPEGs.
    """
    turn = seconds / ROUNDS
    plain: list[float] = []
    limited: list[float] = []
    ratios: list[float] = []
    with EpisodeStore.open(folder, create=False, mode="r") as store:
        names = store.ids()
        began = time.perf_counter()
        data = load_dataset(store, names, DataConfig(image_size=size, ram_gib=_NO_RAM_GIB))
        with _loader(data) as loader:
            loader.batch(0)
            first_batch_s = time.perf_counter() - began
            _rate(loader, 0.5)
            rss_mb = resident_mb(os.getpid())
            limit = _decoder(store, names, size) if _is_jpeg(store, names[0]) else None
            for _ in range(ROUNDS):
                plain.append(_rate(loader, turn))
                if limit is not None:
                    limited.append(limit(turn))
                    ratios.append(plain[-1] / limited[-1])
        with tempfile.TemporaryDirectory(prefix="cache-", dir=folder.parent) as cache:
            config = DataConfig(image_size=size, ram_gib=_NO_RAM_GIB, scratch=Path(cache))
            cached = load_dataset(store, names, config)
            with _loader(cached) as loader:
                for step in range(2 * len(cached) // BATCH):  # twice: filled, then each checksum looked at
                    loader.batch(step)
                cached_rate = _rate(loader, seconds)
                rss_cached_mb = resident_mb(os.getpid())
    decoder = {}
    if limited:
        decoder = {"decoder_limit_per_s": round(median(limited), 1), "of_decoder": round(median(ratios), 3)}
    return {
        "samples_per_s": round(median(plain), 1),
        "samples_per_s_cached": round(cached_rate, 1),
        **decoder,
        "first_batch_s": round(first_batch_s, 3),
        "rss_mb": round(rss_mb, 1),
        "rss_cached_mb": round(rss_cached_mb, 1),
    }


def _loader(data: Dataset) -> Loader:
    sampler = Sampler([Part(0, len(data), BATCH)], seed=0)
    return Loader(data, sampler, Window(CHUNK), threads=THREADS)


def _rate(loader: Loader, seconds: float) -> float:
    """Samples a second, from where the loader is."""
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        count += len(loader.batch(loader.step).state)
    return count / passed


def _is_jpeg(store: EpisodeStore, name: str) -> bool:
    return all(camera.codec == "jpeg" for camera in store.read(name).meta.cameras.values())


def _decoder(store: EpisodeStore, names: list[str], size: tuple[int, int]) -> Callable[[float], float]:
    """Two threads that do nothing but decode JPEGs in memory, in random order: samples a second."""
    jpegs: list[bytes] = []
    rng = np.random.default_rng(0)
    episode = store.read(names[0])
    for camera in episode.cameras:
        frames = episode.frames(camera)
        chosen = rng.permutation(len(frames))[:_LIMIT_PICTURES]
        jpegs += [frames.jpeg(int(i)) for i in chosen]
    stored = frames.size
    cameras = len(episode.cameras)

    def run(seconds: float) -> float:
        counts = [0] * THREADS
        end = time.perf_counter() + seconds

        def decode(number: int) -> None:
            order = np.random.default_rng(number).permutation(len(jpegs))
            out = np.empty(
                (*size, 3), np.uint8
            )  # the same place over and over: in the cache, never a page fault
            while time.perf_counter() < end:
                decode_into(jpegs[order[counts[number] % len(order)]], stored, out, "a picture")
                counts[number] += 1

        began = time.perf_counter()
        threads = [threading.Thread(target=decode, args=(i,)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / cameras / (time.perf_counter() - began)

    return run


if __name__ == "__main__":
    main()
