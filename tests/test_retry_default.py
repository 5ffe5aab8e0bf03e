"""What `Retry()` covers when nobody says."""

import asyncio

import pytest

from fastapi_bgx import Retry


@pytest.mark.parametrize("error", [SystemExit(), asyncio.CancelledError(), KeyboardInterrupt()])
@pytest.mark.parametrize("policy", [Retry(), Retry(on=Exception)])
def test_what_is_no_exception_is_not_retried_by_default(
    policy: Retry, error: BaseException
) -> None:
    assert policy.covers(ValueError(), timed_out=False)
    assert not policy.covers(error, timed_out=False)
