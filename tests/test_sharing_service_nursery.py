"""A nursery that leaves the exception of its block alone."""

import pytest
import trio

from trio_daq.sharing import ServiceNursery


async def fail(error):
    await trio.lowlevel.checkpoint()
    raise error


async def fail_at_the_end(error):
    try:
        await trio.sleep_forever()
    finally:
        raise error


async def serve_and_raise(services, body_error, started=trio.lowlevel.checkpoint):
    """Run each of *services* (a function and its argument) beside a body that raises *body_error*."""
    async with ServiceNursery() as nursery:
        for function, *arguments in services:
            nursery.start_soon(function, *arguments)
        await started()
        if body_error is not None:
            raise body_error


BODY_ERRORS = [
    KeyError("k"),
    ExceptionGroup("mine", [ValueError(), KeyError()]),
    BaseExceptionGroup("mine", [KeyboardInterrupt()]),
    SystemExit(3),
    trio.TooSlowError(),
]


@pytest.mark.parametrize("error", BODY_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("services", [0, 1, 3])
async def test_what_the_body_raises_comes_out_untouched(error, services):
    """The very exception of the body comes out, with its cause, whatever services were cancelled by it."""
    error.__cause__ = cause = OSError("why")
    with pytest.raises(type(error)) as caught:
        await serve_and_raise([(trio.sleep_forever,)] * services, error)
    assert caught.value is error
    assert error.__cause__ is cause
    assert error.__context__ is None


async def test_a_body_cancelled_from_outside_ends_in_that_scope(autojump_clock):
    """A cancellation of an outer scope goes through and is caught by that scope alone."""
    passed = False
    with trio.move_on_after(1) as outer:
        async with ServiceNursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
        passed = True
    assert outer.cancelled_caught
    assert not passed


async def test_an_error_of_the_body_during_an_outer_cancellation_comes_out(autojump_clock):
    """If the body fails while it is cancelled from outside, its error comes out bare."""
    error = KeyError("while cleaning up")

    async def body():
        await fail_at_the_end(error)

    with pytest.raises(KeyError) as caught, trio.move_on_after(1):
        await serve_and_raise([(trio.sleep_forever,)], None, body)
    assert caught.value is error


@pytest.mark.parametrize("waits", [True, False])
async def test_the_lone_error_of_a_service_comes_out_bare(waits):
    """If one service fails, its own exception comes out, cause kept, whether the body waits or has ended."""
    error = OSError("line lost")
    error.__cause__ = cause = ValueError()
    body = trio.sleep_forever if waits else trio.lowlevel.checkpoint
    with pytest.raises(OSError, match="line lost") as caught:
        await serve_and_raise([(fail, error), (trio.sleep_forever,)], None, body)
    assert caught.value is error
    assert error.__cause__ is cause


async def test_a_group_of_a_service_is_not_wrapped_in_another():
    """If what one service raises is a group, that group comes out, with the same leaves."""
    leaves = (OSError(), ValueError())
    with pytest.raises(ExceptionGroup, match="its own") as caught:
        await serve_and_raise([(fail, ExceptionGroup("its own", leaves))], None, trio.sleep_forever)
    assert caught.value.exceptions == leaves


@pytest.mark.parametrize("error", [KeyError("body"), ExceptionGroup("body", [KeyError()])], ids=["bare", "group"])
async def test_both_failing_makes_a_group_of_both(error):
    """If body and service fail for reasons of their own, a group has both, and both are what they were."""
    service = OSError("service")
    with pytest.raises(ExceptionGroup) as caught:
        await serve_and_raise([(fail_at_the_end, service)], error)
    assert set(caught.value.exceptions) == {error, service}


async def test_two_services_failing_makes_a_group_of_both():
    """If two services fail, a group has both."""
    one, two = OSError("one"), ValueError("two")
    with pytest.raises(ExceptionGroup) as caught:
        await serve_and_raise([(fail, one), (fail_at_the_end, two)], None, trio.sleep_forever)
    assert set(caught.value.exceptions) == {one, two}


async def test_cancelling_its_own_scope_is_a_silent_end():
    """Services that the block itself cancels at its end raise nothing."""
    async with ServiceNursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()


async def test_a_return_value_and_a_loop_control_pass():
    """Leaving the block by return or break waits for the services and changes nothing."""
    ended = []

    async def service():
        await trio.lowlevel.checkpoint()
        ended.append(True)

    async def body():
        for _ in range(2):
            async with ServiceNursery() as nursery:
                nursery.start_soon(service)
                break
        async with ServiceNursery() as nursery:
            nursery.start_soon(service)
            return 7

    assert await body() == 7
    assert ended == [True, True]
