"""Facts of the machine, from files as kernels write them and from this kernel itself."""

from pathlib import Path

from raylog.monitor.machine import ClockDiscipline, clock_discipline, congestion, cpu_flags


def test_clock_discipline_of_this_kernel_is_one_of_three_and_in_words() -> None:
    discipline, words = clock_discipline()
    assert discipline in ClockDiscipline
    assert words
    if discipline is ClockDiscipline.SYNCHRONISED:
        assert "off by at most" in words


def test_congestion_controls(tmp_path: Path) -> None:
    (tmp_path / "tcp_available_congestion_control").write_text("reno cubic bbr\n")
    assert congestion(tmp_path) is None
    (tmp_path / "tcp_congestion_control").write_text("cubic\n")
    found = congestion(tmp_path)
    assert found is not None
    assert (found.available, found.default) == (("reno", "cubic", "bbr"), "cubic")


def test_cpu_flags_of_x86_and_arm(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert cpu_flags(cpuinfo) is None
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu aes vaes\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(cpuinfo) == {"fpu", "aes", "vaes"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd aes\n")
    assert cpu_flags(cpuinfo) == {"fp", "asimd", "aes"}
    cpuinfo.write_text("processor\t: 0\n")
    assert cpu_flags(cpuinfo) is None
