"""What a GPU does wrong is told with the remedy, and the stream goes on where it can."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fakes import PanningStream, ShiftMatcher
from torch import Tensor

from loftr_ros.frontend.config import FrontEndConfig, KeyframeConfig
from loftr_ros.frontend.keyframes import KeyframeReason
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.matcher import constants, factory, precision
from loftr_ros.matcher.factory import MatcherSpec, open_matcher
from loftr_ros.matcher.faults import gpu_problem, is_lost, is_out_of_memory, missing_gpu_build
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.precision import DeviceError, resolve_device, why_no_gpu

GPU = torch.device("cuda", 0)
NO_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class ShortMatcher(ShiftMatcher):
    """Has memory for images up to a width, and for a number of keyframes."""

    def __init__(self, width: int, keyframes: int) -> None:
        super().__init__()
        self.width, self.keyframes, self.released = width, keyframes, 0
        self.waited_for_encoding = 0.0

    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        if image.shape[1] > self.width:
            raise NO_MEMORY
        return super().encode(image, usable)

    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        if len(keyframes) > self.keyframes:
            raise NO_MEMORY
        return super().match(keyframes, current)

    def release(self) -> None:
        self.released += 1


def front_end(matcher: ShiftMatcher) -> FrontEnd:
    return FrontEnd(matcher, FrontEndConfig(keyframe=KeyframeConfig(max_matched=3)))


def refused(fe: FrontEnd, x: float, stream: PanningStream) -> str:
    with pytest.raises(FrameRefusedError, match="memory ran out") as raised:
        fe.process(stream.at(x))
    assert raised.value.kind == "memory"
    return str(raised.value)


def test_without_memory_for_all_keyframes_fewer_are_matched_and_none_is_lost() -> None:
    stream, matcher = PanningStream(), ShortMatcher(10_000, keyframes=1)
    fe = front_end(matcher)
    fe.process(stream.at(0))
    fe.force_keyframe()
    fe.process(stream.at(5))
    assert "at most 2 keyframes" in refused(fe, 10, stream)
    assert "at most 1 keyframes" in refused(fe, 11, stream)
    result = fe.process(stream.at(12))
    assert matcher.released == 2 and result.effort.keyframes == 1 and result.effort.scale == 1
    assert len(result.matches) == 1 and len(result.matches[0].correspondences) > 30
    assert len(fe.buffer) == 2 and result.events == ()


def test_without_memory_for_the_image_smaller_ones_are_encoded_with_new_keyframes() -> None:
    stream, matcher = PanningStream(), ShortMatcher(10_000, keyframes=3)
    fe = front_end(matcher)
    fe.process(stream.at(0))
    matcher.width = round(0.7 * stream.at(0).size[0])
    for x in (1, 2, 3, 4):  # two keyframes, one, and two smaller images
        refused(fe, x, stream)
    result = fe.process(stream.at(5))
    assert result.effort.scale == 0.64
    assert [(event.added, event.reason) for event in result.events] == [
        (False, KeyframeReason.EFFORT),
        (True, KeyframeReason.FIRST),
    ]
    assert len(fe.process(stream.at(7)).matches[0].correspondences) > 10


def test_what_did_not_fit_is_not_tried_again_however_much_time_there_is() -> None:
    from loftr_ros.frontend.budget import LatencyBudget

    budget = LatencyBudget(limit=1.0, max_keyframes=3)
    budget.limit_to_less()
    for _ in range(200):
        budget.record(0.01, 0.005, 0.004)
    assert budget.effort.keyframes == 2


def test_other_errors_are_no_lack_of_memory_and_pass() -> None:
    matcher = ShortMatcher(10_000, keyframes=3)
    fe, stream = front_end(matcher), PanningStream()
    fe.process(stream.at(0))
    matcher.match = lambda *_: (_ for _ in ()).throw(RuntimeError("something else"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="something else"):
        fe.process(stream.at(1))
    assert matcher.released == 0


def test_time_that_matching_waits_for_encoding_counts_as_encoding() -> None:
    matcher, stream = ShortMatcher(10_000, keyframes=3), PanningStream()
    fe = front_end(matcher)
    fe.process(stream.at(0))
    matcher.waited_for_encoding = 5.0
    latencies = fe.process(stream.at(1)).latencies
    assert 5 <= latencies["encode"] < 10 and -5 <= latencies["match"] < 0


@pytest.mark.parametrize(
    ("message", "no_memory", "lost"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB", True, False),
        ("CUDA error: out of memory", True, False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, False),
        ("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9", True, False),
        ("CUDA error: an illegal memory access was encountered", False, True),
        ("CUDA error: unspecified launch failure", False, True),
        ("CUDA failure 700: an illegal memory access was encountered", False, True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False, True),
        ("mat1 and mat2 shapes cannot be multiplied", False, False),
    ],
)
def test_faults_are_told_apart_by_their_messages(message: str, no_memory: bool, lost: bool) -> None:
    error = RuntimeError(message)
    assert (is_out_of_memory(error), is_lost(error)) == (no_memory, lost)
    assert not is_lost(ValueError(message))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU by name, on which nothing runs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Orin")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 7))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])


@pytest.mark.usefixtures("card")
def test_a_device_is_believed_after_a_kernel_has_run_on_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert gpu_problem(torch.device("cpu")) == ""  # which stands for one that computes
    assert gpu_problem(GPU).startswith("a first kernel fails: ")
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: a first kernel fails"):
        resolve_device("cuda")
    open_matcher(MatcherSpec("coarse_lite", None, backend="torch"))
    assert "the CPU computes, although there is a GPU: a first kernel fails" in caplog.text
    monkeypatch.setattr(precision, "gpu_problem", lambda device: "")
    assert resolve_device("auto") == resolve_device("cuda:0") == GPU and why_no_gpu() == ""


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("built", "runs"),
    [
        (["sm_80", "sm_90"], True),
        (["sm_87"], True),
        (["compute_75"], True),
        (["sm_50", "sm_90"], False),
        (["sm_90a", "compute_90"], False),
    ],
)
def test_a_build_for_other_architectures_is_told_with_both(
    monkeypatch: pytest.MonkeyPatch, built: list[str], runs: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    problem = gpu_problem(torch.device("cpu"))
    assert problem == "" if runs else f"is built for {', '.join(built)}, not for Orin (sm_87)" in problem


def test_a_jetson_with_a_wheel_for_cpus_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release, model = tmp_path / "nv_tegra_release", tmp_path / "model"
    assert missing_gpu_build(release, model) == ""
    model.write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this is a Jetson" in missing_gpu_build(release, model)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    assert missing_gpu_build(release, model) == ""
    monkeypatch.setattr(precision, "missing_gpu_build", lambda: "this is a Jetson")
    open_matcher(MatcherSpec("coarse_lite", None, backend="torch", device="auto"))
    assert "the CPU computes, although there is a GPU: this is a Jetson" in caplog.text


def test_the_factory_runs_a_network_on_a_gpu_as_a_fixed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from pretended_device import PretendedDevice

    from loftr_ros.matcher.checkpoints.files import load_network
    from loftr_ros.matcher.runtime.gpu import GpuMatcher

    monkeypatch.setattr(factory, "resolve_device", lambda name: GPU)
    monkeypatch.setattr(factory, "CudaDevice", PretendedDevice)
    loaded = load_network("coarse_lite", None, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(factory, "load_network", lambda *given, **more: loaded)
    matcher = open_matcher(MatcherSpec("coarse_lite", None, device="cuda"))
    assert isinstance(matcher, GpuMatcher) and matcher.network is loaded
    assert factory.backend_of(matcher) == "torch"


@pytest.mark.ros
def test_cleanup_leaves_nothing_of_the_network_in_memory(ros_domain: int) -> None:
    import rclpy
    from rclpy.parameter import Parameter

    from loftr_ros.ros.node import FrontEndNode

    settings = {"network": "coarse_lite", "weights": "random", "device": "cpu", "backend": "torch"}
    settings |= {"warm_up_width": 160, "warm_up_height": 128}
    context = rclpy.Context()
    context.init(args=None, domain_id=ros_domain)
    node = FrontEndNode(
        context=context, parameter_overrides=[Parameter(*each) for each in ((n, None, v) for n, v in settings.items())]
    )
    try:
        node.trigger_configure()
        stages = node._stages
        assert stages is not None and constants_kept() > 0
        network = weakref.ref(stages.front_end.matcher)
        assert network() is not None
        del stages
        node.trigger_cleanup()
        assert network() is None and constants_kept() == 0
    finally:
        node.close()
        node.destroy_node()
        context.try_shutdown()


def constants_kept() -> int:
    return sum(int(cache.cache_info().currsize) for cache in constants._caches)


@pytest.mark.ros
def test_a_node_that_has_lost_its_gpu_goes_to_the_error_state_with_the_reason(ros_domain: int) -> None:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.parameter import Parameter

    from loftr_ros.ros.node import FrontEndNode

    settings = {"network": "coarse_lite", "weights": "random", "device": "cpu", "backend": "torch", "warm_up_width": 0}
    context = rclpy.Context()
    context.init(args=None, domain_id=ros_domain)
    node = FrontEndNode(
        context=context, parameter_overrides=[Parameter(*each) for each in ((n, None, v) for n, v in settings.items())]
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        node.trigger_configure()
        node.trigger_activate()
        stages = node._stages
        assert stages is not None
        lost = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")
        stages.call(lambda front_end, outputs: (_ for _ in ()).throw(lost))
        executor.spin_until_future_complete(node.given_up, timeout_sec=20)
        assert node.given_up.done()
        assert node._state_machine.current_state[1] == "finalized"
        assert (
            node.failure == "the GPU is lost: CUDA error: an illegal memory access was encountered; restart the process"
        )
        assert node.statistics.snapshot().errors["gpu"] == 1
    finally:
        node.close()
        node.destroy_node()
        context.try_shutdown()
