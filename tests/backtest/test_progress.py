import io

from service.backtest.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bar_shows_share_and_time_left() -> None:
    out, clock = Terminal(), Clock()
    progress = Progress(out, "seed 3 ", clock)
    clock.now_s = 60.0
    progress.advance(25, 100, "NDCG@10 0.1")
    assert out.getvalue().endswith(
        "seed 3 [#######.......................]  25%  1:00 passed, 3:00 left  NDCG@10 0.1"
    )
    progress.end()
    assert out.getvalue().endswith("\r\x1b[K")


def test_time_passes_while_no_event_is_done() -> None:
    out, clock = Terminal(), Clock()
    progress = Progress(out, clock_s=clock)
    progress.advance(50, 100, "learning")
    clock.now_s = 120.0
    progress.meanwhile("testing")
    assert out.getvalue().endswith(" 50%  2:00 passed, 2:00 left  testing")


def test_a_bar_is_not_drawn_at_every_step() -> None:
    out, clock = Terminal(), Clock()
    progress = Progress(out, clock_s=clock)
    progress.advance(1, 100, "")
    once = out.getvalue()
    progress.advance(2, 100, "")
    assert out.getvalue() == once


def test_without_a_terminal_a_part_is_a_line() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(out, "", clock)
    clock.now_s = 7200.0
    progress.advance(50, 100, "ignored")
    assert out.getvalue() == ""
    progress.part("period 1")
    progress.end()
    assert out.getvalue() == " 50%  2:00:00 passed, 2:00:00 left  period 1\n"
