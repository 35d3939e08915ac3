"""A model's card says what it was trained on and what was measured of these weights; a push is compared afterwards."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from sqlalchemy import select

from app.errors import AppError
from app.model_card import TrainedOn, model_card, results_of, trained_on
from app.model_publishing import model_files, push_model
from app.training_files import training_summary
from curation.embeddings import model_folder
from curation.publishing.changes import RemoteFile
from db.publications import record_publication
from db.store import Store
from db.tables.releases import Release

SUMMARY = {
    "recipe": {"name": "small", "model": "minilm", "schedule": "easy_to_hard", "pooling": "log1p", "seed": 3},
    "release": "toy-1.0.0",
    "release_digest": "d" * 64,
    "num_examples": 12,
    "num_steps": 4,
    "machine": "a machine",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    shutil.copytree(model_folder("minilm"), folder)
    (folder / "training.json").write_text(json.dumps(SUMMARY))
    return folder


def _report(path: Path, version: str) -> Path:
    change = {"ndcg@10": {"difference": 0.02, "interval_95": [-0.01, 0.05]}}
    models = [
        {"model": "minilm", "name": "minilm", "version": "other", "metrics": {"ndcg@10": 0.6, "mrr@10": 0.5}},
        {"model": "m", "name": "small", "version": version, "metrics": {"mrr@10": 0.5, "ndcg@10": 0.62},
         "difference": change},
    ]  # fmt: skip
    one = {
        "kind": "retrieval",
        "data": "/x/sci|fact",
        "split": "dev",
        "pool": 50,
        "num_queries": 115,
        "metrics": ["ndcg@10", "mrr@10"],
    }
    path.write_text(json.dumps({**one, "models": models}))
    return path


def test_card_names_release_publication_recipe_and_results(tmp_path: Path, model: Path) -> None:
    from app.encoders import trusted_code
    from curation.embeddings import BiEncoder

    version = BiEncoder(str(model), trusted_code=trusted_code()).version
    results = results_of(model, [_report(tmp_path / "r.json", version)])
    source = TrainedOn("toy-1.0.0", "d" * 64, "me/toy", "1.0.0", "c" * 40, "https://hub")
    text = model_card(training_summary(model), source, results, repo="me/small", tag="v1")
    card = ModelCard(text)
    assert card.data.datasets == ["me/toy"] and card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"ndcg@10": 0.62, "mrr@10": 0.5}
    assert "d" * 64 in text and "at revision `1.0.0`" in text and "c" * 40 in text
    assert "sci\\|fact, dev, within BM25's top 50" in text and "+0.020 (-0.010 to +0.050)" in text
    assert text.index("| ndcg@10 |") < text.index("| mrr@10 |")
    assert "(https://hub/datasets/me/toy)" in text
    assert 'SentenceTransformer("me/small", revision="v1", trust_remote_code=True)' in text
    unpublished = model_card(SUMMARY, TrainedOn("toy-1.0.0", "d" * 64), [], repo="me/small")
    plain = model_card(SUMMARY, TrainedOn("toy-1.0.0", "d" * 64), [], repo="me/small", has_code=False)
    assert 'SentenceTransformer("me/small")' in plain and "modeling_ata" not in plain
    assert "not published from the store" in unpublished and ModelCard(unpublished).data.datasets is None


@pytest.mark.parametrize(
    ("prompt", "instruction", "expected"),
    [
        ("", None, "model.encode_query([...])"),
        ("q: ", None, "model.encode_query([...])"),
        ("Instruct: {instruction}\nQuery: ", "find", "model.encode_query([...])"),
        ("Instruct: {instruction}\nQuery: ", None,
         'model.encode_query([...], prompt="Instruct: {instruction}\\nQuery: ")'),
    ],
)  # fmt: skip
def test_card_says_what_queries_are_asked_with(prompt: str, instruction: str | None, expected: str) -> None:
    summary = {**SUMMARY, "recipe": {**SUMMARY["recipe"], "query_prompt": prompt}, "instruction": instruction}
    card = model_card(summary, TrainedOn("toy-1.0.0", "d" * 64), [], repo="me/small")
    assert f"queries = {expected}\ndocuments = model.encode_document([...])\n" in card
    assert ("column `instruction` of the release" in card) == ("{instruction}" in expected)


def test_results_of_other_weights_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(AppError, match="no figures of these weights"):
        results_of(model, [_report(tmp_path / "r.json", "somebody else's")])
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(AppError, match="is no report"):
        results_of(model, [tmp_path / "r.json"])


def test_publication_is_known_only_under_the_same_digest(store: Store) -> None:
    with store.write() as session:
        session.add(Release(name="toy-1.0.0", digest="d" * 64, recipe={}, manifest={}, path="x"))
        session.flush()
        key = session.scalars(select(Release.id)).one()
    assert trained_on(SUMMARY, store, "e").repo is None
    record_publication(store, key, endpoint="e", repo="me/toy", tag="1.0.0", commit="c" * 40)
    record_publication(store, key, endpoint="f", repo="me/other", tag="1.0.0", commit="d" * 40)
    assert trained_on(SUMMARY, store, "e") == TrainedOn("toy-1.0.0", "d" * 64, "me/toy", "1.0.0", "c" * 40, "e")
    assert trained_on(SUMMARY, store, "g").repo == "me/other"
    assert trained_on({**SUMMARY, "release_digest": "e" * 64}, store, "e").repo is None


class _Hub:
    """A repository in memory, at the seam where `HubRepository` stands; `spoils` changes what arrives."""

    repo, url = "me/small", "https://hub/me/small"

    def __init__(self, *, is_private: bool | None = None, spoils: bool = False) -> None:
        self.files: dict[str, RemoteFile] = {}
        self.sent: list[list[str]] = []
        self.is_private, self._spoils = is_private, spoils

    def check_token(self) -> None: ...

    def state(self) -> Any:
        head = f"{len(self.sent):040d}"
        return None if self.is_private is None else SimpleNamespace(head=head, is_private=self.is_private)

    def create(self, *, is_private: bool) -> None:
        self.is_private = is_private

    def has_xet(self) -> bool:
        return False

    def tree(self, revision: str) -> dict[str, RemoteFile]:
        return dict(self.files)

    def commit(self, files: list[Any], gone: list[str], **more: Any) -> str:
        self.sent.append([file.path for file in files])
        for file in files:
            sha256 = "0" * 64 if self._spoils else file.sha256
            self.files[file.path] = RemoteFile(file.size, file.git_sha1(), sha256)
        return f"{len(self.sent):040d}"


def _push(model: Path, hub: Any, *, is_private: bool = False) -> Any:
    return push_model(model, hub, is_private=is_private, title="t", progress=lambda done: None)


def test_push_sends_what_differs_once_and_compares(model: Path) -> None:
    hub = _Hub()
    (model / ".cache").mkdir()
    (model / ".cache" / "hidden").write_text("x")
    first = _push(model, hub)
    assert first.is_new and first.num_files == len(model_files(model)) == len(hub.sent[0])
    assert ".cache/hidden" not in hub.files and "model.safetensors" in hub.files
    assert not _push(model, hub).is_new
    (model / "README.md").write_text("another card")
    assert _push(model, hub).is_new and hub.sent[1:] == [["README.md"]]


def test_push_refuses_a_public_repository_and_tells_of_other_bytes(model: Path) -> None:
    with pytest.raises(AppError, match="is public and --private was asked for"):
        _push(model, _Hub(is_private=False), is_private=True)
    with pytest.raises(AppError, match="is not what was sent"):
        _push(model, _Hub(spoils=True))


def test_weights_that_would_be_loaded_in_its_place_stop_a_push(model: Path) -> None:
    hub = _Hub(is_private=False)
    hub.files = {"model.safetensors.index.json": RemoteFile(1, "0" * 40, None), "notes.txt": RemoteFile(1, "0", None)}
    with pytest.raises(AppError, match=r"holds model\.safetensors\.index\.json, which this model has not"):
        _push(model, hub)
    assert not hub.sent


def test_events_do_not_tell_the_machines_name(model: Path) -> None:
    (model / "runs").mkdir()
    for name in ("events.out.tfevents.17.secret-host.1.0", "events.out.tfevents.18.secret-host.2.0"):
        (model / "runs" / name).write_text(name)
    files = model_files(model)
    assert not any("secret-host" in name for name in files)
    assert files["runs/events.out.tfevents.1"].file.name == "events.out.tfevents.18.secret-host.2.0"
