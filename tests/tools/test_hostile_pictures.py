"""`ratchet bench hostile` sends small pictures that are much work; so does who may drive."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np

from protos.ratchet.v1 import policy_pb2 as pb
from tools.bench import hostile
from tools.hostile.messages import MESSAGES, PREFIX, laborious_pictures, sound
from tools.hostile.scans import many_scans


def test_the_pictures_are_jpegs_of_the_right_size_with_thousands_of_scans():
    assert MESSAGES["laborious_pictures"] == (laborious_pictures, 0.05)
    base = sound(random.Random(1))
    most = 0
    for seed in range(20):
        method, data = laborious_pictures(random.Random(seed), base)
        assert method == PREFIX + "Infer"
        request = pb.InferRequest.FromString(data)
        assert len(data) < 2 * 2 * 96 * 96 * 3 + 65_536, "or it is refused for its size alone"
        most = max(most, *(image.data.count(b"\xff\xda") for image in request.images))
    assert most > 5000


def test_they_are_what_a_decoder_takes():
    picture = np.frombuffer(many_scans(48, 64, 20), np.uint8)
    assert cv2.imdecode(picture, cv2.IMREAD_COLOR).shape == (48, 64, 3)


def test_encrypted_one_attacker_may_drive(tmp_path: Path):
    site = hostile._encrypted(tmp_path)
    assert sum(share for _, share in site.attackers) == 1.0
    with_certificate = [folder for folder, _ in site.attackers if (folder / "client.pem").exists()]
    assert {folder.name for folder in with_certificate} == {"look", "drive"}
    assert not {folder for folder, _ in site.attackers} & {site.honest}
