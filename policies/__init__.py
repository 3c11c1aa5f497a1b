"""What a policy is: networks, bundles, and what runs them.

Two of the libraries that do report to their makers what is run with them, by default. Neither may from a
robot; this is before either is imported.
"""

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime since 1.29: models' names, hashes of their weights
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # what OpenVINO reports its import with
