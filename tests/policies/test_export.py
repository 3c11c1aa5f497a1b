"""The forms of a policy agree; one that does not is never published; golden vectors catch the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.act import ACT
from policies.bundle import Bundle, write_bundle
from policies.config import ACTConfig, CameraShape
from policies.engine import OPENVINO, skipped
from policies.errors import ExportError, GoldenMismatchError, InputError
from policies.export import RawBatch, Tolerances, export_bundle
from policies.golden import check_golden, pack_golden
from policies.keys import KeyPair
from policies.manifest import BUNDLE_FILES, GOLDEN_FILE, BundleMeta
from policies.normalise import Normaliser
from policies.session import ChunkResult, OnnxSession
from policies.torch_session import TorchSession, load_model
from tests.policies.conftest import TINY, make_batch, make_model, make_stats

STD = 0.4


def test_every_form_gives_the_same_chunk(exported: Bundle) -> None:
    """For any batch size, on observations the export has not seen."""
    reference = TorchSession(exported)
    exact, coarse = OnnxSession(exported), OnnxSession(exported, "int8")
    assert exact.chunk == TINY.chunk
    assert exact.version == exported.version
    for size in (1, 2, 5):
        state, images = make_batch(TINY, size, seed=size + 10)
        expected = reference.infer(state, images)
        result = exact.infer(state, images)
        assert expected.actions.shape == (size, TINY.chunk, TINY.action_dim)
        assert result.features.shape == (size, TINY.dim)
        assert np.abs(result.actions - expected.actions).max() < 1e-4 * STD
        np.testing.assert_allclose(result.features, expected.features, atol=1e-4)
        assert np.abs(coarse.infer(state, images).actions - expected.actions).mean() < 0.05 * STD


def test_rows_of_a_batch_do_not_influence_each_other(exported: Bundle) -> None:
    session = OnnxSession(exported)
    state, images = make_batch(TINY, 3)
    together = session.infer(state, images).actions
    for row in range(3):
        alone = session.infer(state[row : row + 1], {k: v[row : row + 1] for k, v in images.items()}).actions
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


@pytest.mark.skipif(OPENVINO in skipped(), reason=f"no OpenVINO: {skipped()}")
def test_what_int8_is_off_by_in_openvino_is_stated_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policies.openvino_session import Int8Network

    model, normaliser = make_model(TINY)
    right, off = Int8Network.run, [0.0]

    def wrong(self: Int8Network, feed: Mapping[str, np.ndarray]) -> ChunkResult:
        found = right(self, feed)
        return ChunkResult(found.actions + np.float32(off[0] * STD), found.features)

    def export(name: str) -> Bundle:
        batch = RawBatch(*make_batch(TINY, 4))
        return export_bundle(
            model, normaliser, tmp_path / name, KeyPair.generate(), BundleMeta(name="x"), [batch]
        )

    monkeypatch.setattr(Int8Network, "run", wrong)
    off[0] = 0.03
    assert export("stated").manifest.parity.int8_error == pytest.approx(0.03, abs=0.01)
    for off[0] in (0.2, float("nan")):
        with pytest.raises(ExportError, match="OpenVINO is off torch"):
            export("judged")
    assert not (tmp_path / "judged").exists()


def test_the_torch_form_is_the_model_that_was_exported(exported: Bundle) -> None:
    model, normaliser = make_model(TINY)
    again, restored = load_model(exported)
    assert again.config == TINY
    assert restored.stats == normaliser.stats
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_actions_come_out_in_raw_units(exported: Bundle) -> None:
    model, normaliser = make_model(TINY)
    state, images = make_batch(TINY, 1)
    pictures = normaliser.images({name: torch.from_numpy(image) for name, image in images.items()})
    with torch.inference_mode():
        normalised = model(normaliser.state(torch.from_numpy(state)), pictures).actions.numpy()
    np.testing.assert_allclose(
        OnnxSession(exported).infer(state, images).actions, normalised * STD - 0.2, atol=1e-5
    )


def test_resize_inside_the_graph(tmp_path: Path, key: KeyPair) -> None:
    config = TINY.model_copy(update={"resize": (32, 64), "backbone_per_camera": False})
    model, normaliser = make_model(config)
    bundle = export_bundle(
        model, normaliser, tmp_path / "b", key, BundleMeta(name="resized"), [make_batch(config, 4)]
    )
    state, images = make_batch(config, 2, seed=5)
    expected = TorchSession(bundle).infer(state, images).actions
    assert np.abs(OnnxSession(bundle).infer(state, images).actions - expected).max() < 1e-4 * STD


def test_export_leaves_the_model_as_it_was(tmp_path: Path, key: KeyPair) -> None:
    model, normaliser = make_model(TINY)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_bundle(model, normaliser, tmp_path / "b", key, BundleMeta(name="x"), [make_batch(TINY, 4)])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_forms_beyond_tolerance_are_not_published(tmp_path: Path, key: KeyPair) -> None:
    model, normaliser = make_model(TINY)
    batches, meta = [make_batch(TINY, 4)], BundleMeta(name="x")
    for tolerances in (Tolerances(fp32_max=1e-12), Tolerances(int8_mean=1e-9)):
        with pytest.raises(ExportError, match="off torch"):
            export_bundle(model, normaliser, tmp_path / "b", key, meta, batches, tolerances)
    with pytest.raises(ExportError, match="calibrate"):
        export_bundle(model, normaliser, tmp_path / "b", key, meta, [])
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_network_is_not_published(tmp_path: Path, key: KeyPair) -> None:
    model, normaliser = make_model(TINY)
    with torch.no_grad():
        model.action_head.bias[0] = float("nan")
    with pytest.raises(ExportError):
        export_bundle(model, normaliser, tmp_path / "b", key, BundleMeta(name="x"), [make_batch(TINY, 4)])


def test_golden_vectors_pass_in_every_form(exported: Bundle) -> None:
    assert check_golden(TorchSession(exported), exported) < 1e-5
    assert check_golden(OnnxSession(exported), exported) < 1e-4
    assert 0.0 < check_golden(OnnxSession(exported, "int8"), exported) < 0.1


def test_golden_vectors_catch_a_runtime_that_computes_something_else(
    exported: Bundle, tmp_path: Path, key: KeyPair
) -> None:
    state, images = make_batch(TINY, 2)
    result = OnnxSession(exported).infer(state, images)
    for shift in (np.float32(0.01), np.float32(np.nan)):
        wrong = ChunkResult(result.actions + shift, result.features)
        files: dict[str, Path | bytes] = {name: exported.path / name for name in BUNDLE_FILES}
        files[GOLDEN_FILE] = pack_golden(state, images, wrong)
        bundle = write_bundle(tmp_path / f"wrong{shift}", files, exported.manifest, key)
        with pytest.raises(GoldenMismatchError, match="do not run it"):
            check_golden(OnnxSession(bundle), bundle)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, i: (s[:, :5], i), "state"),
        (lambda s, i: (s.astype(np.float64), i), "float32"),
        (lambda s, i: (s * np.nan, i), "NaN"),
        (lambda s, i: (s, {"front": i["front"]}), "wrist"),
        (lambda s, i: (s, {**i, "wrist": i["wrist"][:, :32]}), "wrist"),
        (lambda s, i: (s, {**i, "front": i["front"].astype(np.float32)}), "uint8"),
        (lambda s, i: (np.repeat(s, 2, axis=0), i), "front"),
    ],
)
def test_observations_that_do_not_fit_are_named(exported: Bundle, change: object, says: str) -> None:
    batch = make_batch(TINY, 1)
    assert callable(change)
    for session in (OnnxSession(exported), TorchSession(exported)):
        with pytest.raises(InputError, match=says):
            session.infer(*change(batch.state, dict(batch.images)))


def test_read_only_frames_are_accepted(exported: Bundle) -> None:
    state, images = make_batch(TINY, 1)
    for image in images.values():
        image.flags.writeable = False
    for session in (OnnxSession(exported), TorchSession(exported)):
        assert np.isfinite(session.infer(state, images).actions).all()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_form_agrees(tmp_path: Path, key: KeyPair) -> None:
    config = ACTConfig.model_validate(
        {
            **TINY.model_dump(),
            "cameras": (CameraShape(name="front", height=32, width=32),),
            "backbone_blocks": 1,
            "use_vae": False,
        }
    )
    model, normaliser = make_model(config)
    meta = BundleMeta(name="one_camera")
    bundle = export_bundle(model, normaliser, tmp_path / "b", key, meta, [make_batch(config, 4)])
    assert check_golden(TorchSession(bundle, compile=True), bundle) < 1e-4


def test_imported_statistics_need_not_be_per_joint_equal(tmp_path: Path, key: KeyPair) -> None:
    """Joints of very different scale keep their own: the tolerance is in each joint's deviations."""
    stats = make_stats(TINY)
    scaled = stats.model_copy(
        update={"action": stats.action.model_copy(update={"std": (0.001, 0.1, 1.0, 10.0, 0.5, 0.2)})}
    )
    model = ACT(TINY).eval()
    bundle = export_bundle(
        model, Normaliser(scaled, TINY), tmp_path / "b", key, BundleMeta(name="x"), [make_batch(TINY, 4)]
    )
    assert bundle.manifest.parity.fp32_error < 1e-4
    batch: RawBatch = make_batch(TINY, 2, seed=3)
    spread = np.abs(OnnxSession(bundle).infer(*batch).actions + 0.2).mean(axis=(0, 1))
    assert spread[3] > 1000 * spread[0]
