"""What `gradus publish` and the page share: the Hub under the token of this machine, and a plan in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curation.publishing.content import Progress
    from curation.publishing.hub import HubRepository, Kind
    from curation.publishing.publishing import Plan, Published
    from db.store import Store


def hub_repository(repo: str, endpoint: str | None = None, *, kind: "Kind" = "dataset") -> "HubRepository":
    """ORG/NAME under the token of HF_TOKEN or of `hf auth login`, which stays inside.

    Raises:
        PublishingError: It is not ORG/NAME, or the endpoint is no URL.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import disable_progress_bars, logging

    from curation.publishing.hub import HubRepository

    disable_progress_bars()
    logging.set_verbosity_error()  # what the client warns of (Xet, retries) is told by us, or is the error
    return HubRepository(repo, endpoint=endpoint, token=get_token(), kind=kind)


def plan_in_words(plan: "Plan", url: str) -> str:
    """What a dry run found, in a sentence or two."""
    if not plan.is_reachable:
        return f"{plan.note}. What is there is unknown, so every file is listed as new"
    refusal = f". As it stands it would be refused: {plan.note}" if plan.note else ""
    return _changes_in_words(plan, url) + refusal


def _changes_in_words(plan: "Plan", url: str) -> str:
    content = plan.content
    if plan.state is None:
        return f"{url} is not there, or not for this token: it would be made"
    if plan.is_tagged:
        return f"{url} has {content.tag} with these files: nothing would change"
    if plan.commit:
        return f"{url} has these files at {plan.commit[:12]}: only the tag {content.tag} would be made"
    return f"{url}: one commit on {(plan.state.head or 'nothing')[:12]} and the tag {content.tag} would be made"


def plan_as(store: "Store", name: str, hub: "HubRepository", *, by: str, is_private: bool) -> "Plan":
    """`plan_publication` for a person of the pages, who looks with this machine's token.

    Raises:
        CurationError: The person is no admin, or it cannot be published.
    """
    from curation.publishing import publishing

    _require_admin(store, by)
    return publishing.plan_publication(store, name, hub, is_private=is_private)


def publish_as(
    store: "Store", name: str, hub: "HubRepository", *, by: str, is_private: bool, progress: "Progress"
) -> "Published":
    """`publish` for a person of the pages, who publishes with this machine's token.

    Raises:
        CurationError: The person is no admin, or publishing stopped.
    """
    from curation.publishing import publishing

    _require_admin(store, by)
    return publishing.publish(store, name, hub, is_private=is_private, progress=progress)


def _require_admin(store: "Store", name: str) -> None:
    from curation.reviewing.people import require, reviewer_of

    with store.read() as session:
        require(session, reviewer_of(session, name), "admin")
