"""Who is reviewing: the one seam by which a person's identity comes to the pages.

Without sign-in the pages are for one person on this machine: `GRADUS_REVIEWER`, or the name of the account that runs
them, and they listen on loopback only. With `[auth]` in Streamlit's secrets (OpenID Connect) it is who signed in. What
a person may do is a role in the store, and is checked by the functions that write, not here.
"""

import getpass
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import AppError

if TYPE_CHECKING:
    from db.store import Store

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Identity:
    """A person as the sign-in names them; `is_single_user` where nobody signs in and everyone here is this person."""

    name: str
    is_single_user: bool


def is_sign_in_configured(folder: Path | None = None, home: Path | None = None) -> bool:
    """Whether Streamlit's secrets (of the folder it runs in, or of the account) have an `[auth]` table.

    Raises:
        AppError: A secrets file cannot be read, or sign-in is configured and its library is missing.
    """
    files = [(folder or Path.cwd()), (home or Path.home())]
    if not any(_has_auth(place / ".streamlit" / "secrets.toml") for place in files):
        return False
    if find_spec("authlib") is None:
        raise AppError("sign-in is configured in .streamlit/secrets.toml, but Authlib is missing: pip install authlib")
    return True


def _has_auth(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return "auth" in tomllib.load(file)
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AppError(f"{path}: cannot be read as TOML: mend it, or take it away") from error


def require_safe_address(address: str, *, is_sign_in: bool) -> None:
    """Refuse an address that others can reach while everyone who comes is taken for one person."""
    if address not in LOOPBACK and not is_sign_in:
        raise AppError(
            f"--address {address}: without sign-in everyone who reaches the pages decides as one person; stay on "
            "127.0.0.1, or configure [auth] (OpenID Connect) in .streamlit/secrets.toml"
        )


def identity_of(user: Mapping[str, Any], reviewer: str | None, *, is_sign_in: bool) -> Identity | None:
    """The person of a page.

    Args:
        user: What Streamlit knows of who signed in (`st.user`); empty without sign-in.
        reviewer: The name from the settings for the single user; without it, the account's.
        is_sign_in: Whether people sign in here.

    Returns:
        None when people sign in here and this one has not, or has no e-mail address that their provider has verified.
    """
    if not is_sign_in:
        return Identity(reviewer or getpass.getuser(), is_single_user=True)
    email = user.get("email") if user.get("is_logged_in") else None
    is_refused = user.get("email_verified") is False
    return None if is_refused or not isinstance(email, str) or not email else Identity(email, is_single_user=False)


def put_first_person(store: "Store", identity: Identity) -> None:
    """Make the single user of a store without people its admin; everybody else is added by an admin."""
    from curation.reviewing.people import has_people, put_reviewer

    if not identity.is_single_user:
        return
    with store.read() as session:
        if has_people(session):
            return
    with store.write() as session:
        if not has_people(session):
            put_reviewer(session, identity.name, "admin")
