"""People in SQL: who they are, what they may do, and the pseudonym that stands for them in everything published.

A name is what the sign-in gives. Roles are read from the store at every function that writes, so that a page with an
old idea of a person's role can do no harm.
"""

import secrets
from collections.abc import Sequence
from typing import Literal, get_args

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from db.insert import insert_missing
from db.tables.base import utc_now
from db.tables.review import Reviewer

Role = Literal["reader", "reviewer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)


def put_reviewer(session: Session, name: str, role: Role, *, by: Reviewer | None = None) -> Reviewer:
    """The person of this name, added or given this role. The first person of a store needs nobody's leave.

    Raises:
        CurationError: `by` is no admin, the name or role cannot be, or the last admin would lose the role.
    """
    name = name.strip()
    if not name or len(name) > 300 or not name.isprintable():
        raise CurationError(f"reviewer {name[:50]!r}: a name has 1 to 300 printable characters")
    if role not in ROLES:
        raise CurationError(f"role = {role!r}: give one of {', '.join(ROLES)}")
    if by is None:
        if has_people(session):
            raise CurationError(f"reviewer {name!r}: only an admin adds people or changes roles; say who does it")
    else:
        require(session, by, "admin")
    known = _find(session, name)
    if known is None:
        row = {"name": name, "pseudonym": _new_pseudonym(), "role": role, "is_active": True, "created_at": utc_now()}
        insert_missing(session, Reviewer, [row])
        known = session.scalars(select(Reviewer).where(Reviewer.name == name)).one()
    if known.role != role:
        if known.role == "admin":
            _keep_an_admin(session, known)
        known.role = role
    known.is_active = True
    session.flush()
    return known


def deactivate(session: Session, name: str, *, by: Reviewer) -> Reviewer:
    """Let the person decide nothing more; what was decided stays.

    Raises:
        CurationError: `by` is no admin, nobody has the name, or it is the last admin.
    """
    require(session, by, "admin")
    known = _find(session, name)
    if known is None:
        raise CurationError(f"reviewer {name!r} is not known: see 'gradus review people list'")
    if known.role == "admin":
        _keep_an_admin(session, known)
    known.is_active = False
    session.flush()
    return known


def reviewer_of(session: Session, name: str) -> Reviewer:
    """The active person of this name.

    Raises:
        CurationError: Nobody has the name, or the person is no longer active.
    """
    known = _find(session, name)
    if known is None or not known.is_active:
        what = "is not known here" if known is None else "is no longer active"
        raise CurationError(f"reviewer {name!r} {what}: an admin adds people with 'gradus review people add'")
    return known


def require(session: Session, reviewer: Reviewer, role: Role) -> None:
    """Refuse a person whose role in the store is lower than this one, whatever the object at hand says.

    Raises:
        CurationError: The role is too low, or the person is no longer active.
    """
    row = session.execute(select(Reviewer.name, Reviewer.role, Reviewer.is_active).where(Reviewer.id == reviewer.id))
    refuse_lower(*row.one(), role)


def refuse_lower(name: str, role: str, is_active: bool, needed: Role) -> None:
    """The rule of `require`, for one who has read the row already."""
    if not is_active:
        raise CurationError(f"reviewer {name!r} is no longer active: ask an admin")
    if ROLES.index(role) < ROLES.index(needed):
        raise CurationError(f"{name!r} is a {role}, this needs the role {needed!r}: ask an admin")


def has_people(session: Session) -> bool:
    return session.scalar(select(Reviewer.id).limit(1)) is not None


def people(session: Session) -> Sequence[Reviewer]:
    """Everybody, by name."""
    return session.scalars(select(Reviewer).order_by(Reviewer.name)).all()


def _find(session: Session, name: str) -> Reviewer | None:
    return session.scalars(select(Reviewer).where(Reviewer.name == name.strip())).one_or_none()


def _keep_an_admin(session: Session, leaving: Reviewer) -> None:
    others = select(func.count()).where(Reviewer.role == "admin", Reviewer.is_active, Reviewer.id != leaving.id)
    if not session.scalar(others):
        raise CurationError(f"{leaving.name!r} is the last admin: make somebody else one first")


def _new_pseudonym() -> str:
    return f"reviewer-{secrets.token_hex(6)}"
