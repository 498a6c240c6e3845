"""Each device of MLX in turn, and the table at the end of the run."""

import pytest

from m3mlx.parity.check import Result, devices, table

RESULTS: list[Result] = []


@pytest.fixture(params=["cpu", "metal", "cuda"])
def device(request):
    """An MLX device that this machine has; what it has not is skipped, and says why."""
    if why := devices()[request.param]:
        pytest.skip(f"{request.param}: {why}")
    return request.param


@pytest.fixture
def agree():
    """Checks a comparison, and puts it into the table whatever it says."""

    def check(result: Result) -> None:
        RESULTS.append(result)
        assert result.differences
        assert not [d for d in result.differences if not d.ok]

    return check


def pytest_terminal_summary(terminalreporter):
    if not RESULTS:
        return
    terminalreporter.section("parity: the worst of all cases, max and mean difference")
    head, rows = table(RESULTS)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
