"""GPUs that are hot, lost, incomplete, hung or not there, by a scripted NVML in a process of its own."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from raylog.monitor.nvml import RETRY_MAX_S, GpuReport
from raylog.monitor.samples import THROTTLE_REASONS, GpuSample

Sample = Callable[..., list[GpuReport]]


def test_four_gpus_with_their_figures_in_base_units(scripted_nvml: Path, sample_gpus: Sample) -> None:
    script = (
        "gpus 4\n* util_gpu 80\n* memory_used 1073741824\n* memory_reserved 500\n* energy_mj 5000\n"
        "2 pcie_tx_kb_per_s 3000\n2 pcie_rx_kb_per_s 4000\n3 ecc_corrected 5\n3 ecc_uncorrected 1\n"
    )
    [report] = sample_gpus(scripted_nvml, script)
    assert report.problem is None
    assert [gpu.index for gpu in report.gpus] == [0, 1, 2, 3]
    assert len({gpu.uuid for gpu in report.gpus}) == 4
    assert report.gpus[2] == GpuSample(
        uuid="GPU-fa4e0000-0000-0000-0000-000000000002",
        name="FAKE H100",
        index=2,
        utilisation=0.8,
        memory_used_bytes=1 << 30,
        memory_total_bytes=80 << 30,
        temperature_c=35.0,
        power_w=70.0,
        power_limit_w=700.0,
        energy_j=5.0,
        clock_sm_hz=1_980_000_000,
        clock_memory_hz=2_619_000_000,
        throttle_reasons=(),
        ecc_corrected=0,
        ecc_uncorrected=0,
        pcie_sent_bytes_per_s=3_000_000,
        pcie_received_bytes_per_s=4_000_000,
    )
    assert (report.gpus[3].ecc_corrected, report.gpus[3].ecc_uncorrected) == (5, 1)


def test_a_hot_gpu_and_every_throttle_reason(scripted_nvml: Path, sample_gpus: Sample) -> None:
    cool, hot, slow = sample_gpus(
        scripted_nvml,
        "* clocks_event_reasons 1\n",
        "0 temperature 91\n0 clocks_event_reasons 0x40\n",
        # idle, application clocks and display clocks are no throttling
        "0 clocks_event_reasons 0x1ff\n",
    )
    assert cool.gpus[0].throttle_reasons == ()
    assert (hot.gpus[0].temperature_c, hot.gpus[0].throttle_reasons) == (91.0, ("hw_thermal_slowdown",))
    assert slow.gpus[0].throttle_reasons == THROTTLE_REASONS


def test_unsupported_fields_are_none_and_say_why(scripted_nvml: Path, sample_gpus: Sample) -> None:
    script = (
        "gpus 2\n0 power_mw not_supported\n0 ecc_corrected error 999\n0 pcie_tx_kb_per_s not_supported\n"
        "0 memory_used not_supported\n"
    )
    [report] = sample_gpus(scripted_nvml, script)
    gpu, whole = report.gpus
    assert (gpu.power_w, gpu.ecc_corrected, gpu.pcie_sent_bytes_per_s) == (None, None, None)
    assert (gpu.memory_used_bytes, gpu.memory_total_bytes) == (None, None)
    assert gpu.missing == {
        "power_w": "Not Supported",
        "ecc_corrected": "Unknown Error",
        "pcie_sent_bytes_per_s": "Not Supported",
        "memory_used_bytes": "Not Supported",
        "memory_total_bytes": "Not Supported",
    }
    assert (gpu.temperature_c, gpu.problem, gpu.is_lost) == (35.0, None, False)
    assert whole.missing == {}
    assert report.problem is None


def test_a_gpu_lost_in_the_middle_stays_by_name_and_the_others_go_on(scripted_nvml: Path, sample_gpus: Sample) -> None:
    whole, lost, waiting, still, back = sample_gpus(
        scripted_nvml,
        "gpus 3\n* util_gpu 50\n",
        "gpus 3\n* util_gpu 60\n1 xids 79\n1 lost 1\n",
        (None, 0.5),
        (None, 1.0),  # NVML is opened anew, and the GPU is still lost
        ("gpus 3\n* util_gpu 70\n", RETRY_MAX_S),
    )
    assert whole.problem is None
    for report in (lost, waiting, still):
        gone = report.gpus[1]
        assert gone == GpuSample(
            uuid=whole.gpus[1].uuid, name="FAKE H100", index=1, xids={79: 1}, is_lost=True, problem="GPU is lost"
        )
        assert [gpu.utilisation for gpu in report.gpus] == [0.6, None, 0.6]
        assert report.problem == f"GPU 1 ({gone.uuid}): GPU is lost"
    assert back.problem is None
    assert [gpu.utilisation for gpu in back.gpus] == [0.7, 0.7, 0.7]
    assert back.gpus[1].xids == {79: 1}


def test_a_gpu_lost_before_the_first_sample_has_an_index_only(scripted_nvml: Path, sample_gpus: Sample) -> None:
    [report] = sample_gpus(scripted_nvml, "gpus 2\n0 lost 1\n")
    assert report.gpus[0] == GpuSample(uuid="index-0", name="unknown", index=0, is_lost=True, problem="GPU is lost")
    assert report.gpus[1].problem is None


def test_a_gpu_that_the_driver_stops_listing_is_lost(scripted_nvml: Path, sample_gpus: Sample) -> None:
    four, fewer, reopened = sample_gpus(scripted_nvml, "gpus 2\n", ("gpus 1\n", 1.0), (None, 1.0))
    assert len(four.gpus) == 2
    assert fewer.gpus[0].problem is None
    assert reopened.gpus[1].is_lost
    assert reopened.gpus[1].problem == "the driver no longer lists it"


def test_xids_are_counted_by_code_and_only_from_now_on(scripted_nvml: Path, sample_gpus: Sample) -> None:
    before, after, same = sample_gpus(
        scripted_nvml, "gpus 2\n0 xids 13\n", "gpus 2\n0 xids 13 31 31 43\n1 xids 79\n", (None, 1.0)
    )
    assert [gpu.xids for gpu in before.gpus] == [{}, {}]
    assert [gpu.xids for gpu in after.gpus] == [{31: 2, 43: 1}, {79: 1}]
    assert [gpu.xids for gpu in same.gpus] == [{31: 2, 43: 1}, {79: 1}]


def test_pcie_rates_are_read_of_few_gpus_per_sample_in_turn(scripted_nvml: Path, sample_gpus: Sample) -> None:
    new = "gpus 5\n* pcie_tx_kb_per_s 9\n"
    reports = sample_gpus(scripted_nvml, "gpus 5\n* pcie_tx_kb_per_s 1\n", new, new, new)
    rates = [[gpu.pcie_sent_bytes_per_s for gpu in report.gpus] for report in reports]
    assert rates[0] == [1000] * 5
    assert rates[1].count(9000) == 2
    assert rates[2].count(9000) == 4
    assert rates[3] == [9000] * 5


def test_a_driver_that_does_not_load_is_tried_again_with_growing_pauses(
    scripted_nvml: Path, sample_gpus: Sample
) -> None:
    broken, early, again, soon, works = sample_gpus(
        scripted_nvml,
        "init error 9\n",
        ("gpus 2\n", 0.5),  # the pause is 1 s
        ("init error 9\n", 0.6),
        ("gpus 2\n", 1.9),  # 2 s by now
        (None, 0.2),
    )
    assert broken == GpuReport(problem="NVML does not work: Driver Not Loaded")
    assert broken == early == again == soon
    assert (len(works.gpus), works.problem) == (2, None)


def test_a_driver_that_stops_leaves_the_gpus_named_and_comes_back(scripted_nvml: Path, sample_gpus: Sample) -> None:
    # "error 18": an updated driver under an old library
    works, stopped, back = sample_gpus(scripted_nvml, "gpus 2\n", "gpus error 18\n", ("gpus 2\n", 1.0))
    assert works.problem is None
    assert stopped.problem is not None
    assert "the driver was updated under this process, restart it" in stopped.problem
    assert [(gpu.uuid, gpu.problem, gpu.is_lost) for gpu in stopped.gpus] == [
        (gpu.uuid, stopped.problem, False) for gpu in works.gpus
    ]
    assert back.problem is None
    assert [gpu.temperature_c for gpu in back.gpus] == [35.0, 35.0]


def test_no_driver_says_so_and_works(tmp_path: Path, sample_gpus: Sample) -> None:
    first, second = sample_gpus(tmp_path, (None, 0.0), (None, 100.0))
    expected = GpuReport(problem="no NVIDIA driver on this machine (NVML Shared Library Not Found)")
    assert first == second == expected


def test_a_library_that_is_no_library_or_too_old_says_so(
    tmp_path: Path, compile_nvml: Callable[[str], Path], sample_gpus: Sample
) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("this is text")
    [text] = sample_gpus(tmp_path, (None, 0.0))
    assert text.problem == "no NVIDIA driver on this machine (NVML Shared Library Not Found)"
    old_library = "int nvmlInitWithFlags(unsigned f) { return 0; } int nvmlShutdown(void) { return 0; }"
    [old] = sample_gpus(compile_nvml(old_library), (None, 0.0))
    assert old == GpuReport(problem="NVML does not work: Function Not Found")


def test_a_driver_that_hangs_costs_one_deadline_and_is_reported(
    compile_nvml: Callable[[str], Path], sample_gpus: Sample
) -> None:
    hung = "#include <unistd.h>\nint nvmlInitWithFlags(unsigned flags) { sleep(50); return 0; }"
    library = compile_nvml(hung)
    started_s = time.monotonic()
    first, second = sample_gpus(library, (None, 0.0), (None, 1.0), timeout_s=0.3)
    assert time.monotonic() - started_s < 20
    assert first.gpus == second.gpus == ()
    assert first.problem is not None
    assert "no answer within 0.3 s" in first.problem
    assert second.problem is not None
    assert "an earlier call still hangs" in second.problem


def test_a_report_survives_encoding(scripted_nvml: Path, sample_gpus: Sample) -> None:
    [_, report] = sample_gpus(scripted_nvml, "gpus 2\n", "gpus 2\n1 xids 13\n0 power_mw not_supported\n")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=GpuReport) == report
