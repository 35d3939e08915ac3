"""Who a page takes a person for, and where it may listen."""

from pathlib import Path

import pytest

from app.errors import AppError
from app.reviewing.identity import Identity, identity_of, is_sign_in_configured, require_safe_address


def test_without_sign_in_everyone_is_the_single_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity_of({}, "ada", is_sign_in=False) == Identity("ada", is_single_user=True)
    monkeypatch.setenv("LOGNAME", "grace")
    assert identity_of({"is_logged_in": True, "email": "x@y"}, None, is_sign_in=False) == Identity("grace", True)


@pytest.mark.parametrize(
    "user",
    [{}, {"is_logged_in": False, "email": "a@b"}, {"is_logged_in": True}, {"is_logged_in": True, "email": ""}],
)
def test_with_sign_in_nobody_is_taken_for_the_single_user(user: dict[str, object]) -> None:
    assert identity_of(user, "ada", is_sign_in=True) is None


def test_with_sign_in_it_is_the_verified_address() -> None:
    user = {"is_logged_in": True, "email": "ada@example.org"}
    assert identity_of(user, "grace", is_sign_in=True) == Identity("ada@example.org", is_single_user=False)
    assert identity_of({**user, "email_verified": False}, None, is_sign_in=True) is None


def test_sign_in_is_what_the_secrets_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.reviewing.identity.find_spec", lambda name: object())
    folder, home = tmp_path / "folder", tmp_path / "home"
    assert not is_sign_in_configured(folder, home)
    (home / ".streamlit").mkdir(parents=True)
    secrets = home / ".streamlit" / "secrets.toml"
    secrets.write_text("[auth]\nclient_id = 'x'\n")
    assert is_sign_in_configured(folder, home)
    secrets.write_text("[connections]\n")
    assert not is_sign_in_configured(folder, home)
    secrets.write_text("[auth")
    with pytest.raises(AppError, match="TOML"):
        is_sign_in_configured(folder, home)


def test_sign_in_without_its_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.reviewing.identity.find_spec", lambda name: None)
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text("[auth]\n")
    with pytest.raises(AppError, match="pip install authlib"):
        is_sign_in_configured(tmp_path, tmp_path)


def test_an_address_for_others_needs_sign_in() -> None:
    require_safe_address("127.0.0.1", is_sign_in=False)
    require_safe_address("0.0.0.0", is_sign_in=True)
    for address in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        with pytest.raises(AppError, match="sign-in"):
            require_safe_address(address, is_sign_in=False)
