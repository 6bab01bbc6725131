"""Fetching published weights: quick and clear where there is no network."""

from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 5.0


@contextmanager
def hub_or_cache() -> Iterator[str]:
    """While this lasts, files come from the Hugging Face hub or, where it does not answer, from its cache alone.

    Its client would otherwise ask a dozen times, for a minute, before it looks.

    Yields:
        Why the cache alone is looked at; empty where the hub answers.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    why = "HF_HUB_OFFLINE is set" if before else f"{constants.ENDPOINT} did not answer"
    try:
        yield why if constants.HF_HUB_OFFLINE else ""
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """While this lasts, published weights come as `hub_or_cache` says.

    Raises:
        ConnectionError: the weights are in neither place.
    """
    from huggingface_hub import constants

    with hub_or_cache() as why_cache_alone:
        try:
            yield
        except OSError as error:  # the hub's and urllib's are
            raise ConnectionError(
                f"the published weights of {name!r} must be fetched once, got no connection "
                f"({why_cache_alone or _line(error)}) and none in the cache {constants.HF_HUB_CACHE}; copy that folder "
                "from a machine that has them, or leave pretrained out"
            ) from error


def _answers(address: str) -> bool:
    """One request, by the client that will fetch, so that its proxies and certificates count."""
    from huggingface_hub import get_session

    try:
        get_session().head(address, timeout=PATIENCE_S)
    except Exception:  # each version of the client brings other exceptions
        return False
    return True


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
