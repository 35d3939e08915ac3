"""Where things are: the data folder and the store, and who reviews.

Secrets stay in the environment and are read where they are used.
"""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """`GRADUS_DATA` names the data folder, `GRADUS_STORE` a database URL in place of the SQLite file in it.

    `GRADUS_REVIEWER` names the person who reviews where nobody signs in; without it, it is the account's name.
    """

    model_config = SettingsConfigDict(env_prefix="GRADUS_", frozen=True)

    data: Path = Path("gradus-data")
    store: str | None = None
    reviewer: str | None = None

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{self.data / 'store.db'}"

    @property
    def embeddings(self) -> Path:
        return self.data / "embeddings"

    @property
    def releases(self) -> Path:
        return self.data / "releases"

    @property
    def models(self) -> Path:
        return self.data / "models"
