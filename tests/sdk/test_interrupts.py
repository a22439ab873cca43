"""What Ctrl-C does: a step that stops in order, a block that is broken off once, and nothing between them."""

import signal

import pytest

from edgelm.cli.interrupts import Interrupts


def test_an_interrupt_breaks_a_block_off_once_and_does_nothing_outside_of_one() -> None:
    previous = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with interrupts.breaking():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # while what was broken off is put away
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous


def test_the_first_interrupt_stops_a_step_in_order_and_the_second_breaks_it_off() -> None:
    with Interrupts() as interrupts:
        with interrupts.stopping():
            pass
        signal.raise_signal(signal.SIGINT)  # between two steps
        with interrupts.stopping() as cancel:
            assert not cancel.is_set()
            signal.raise_signal(signal.SIGINT)
            assert cancel.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with interrupts.stopping() as cancel:
            assert not cancel.is_set()
        with interrupts.breaking(), pytest.raises(KeyboardInterrupt):  # at once: there is no step any more
            signal.raise_signal(signal.SIGINT)
