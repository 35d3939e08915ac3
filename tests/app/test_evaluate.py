"""`gradus evaluate`: every kind of set, told by what lies there; several models; nothing left out in silence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.errors import AppError
from app.evaluating.sets import opened_set
from curation.errors import CurationError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path / "data"))


def _report(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    done = CliRunner().invoke(cli, ["evaluate", *arguments, "--json", str(tmp_path / "out.json")])
    if done.exception:
        raise done.exception
    return json.loads((tmp_path / "out.json").read_text()), done.stdout


def _lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def _beir(folder: Path) -> Path:
    texts = ["Otters eat fish in rivers.", "Herons nest in trees.", "The stock market fell.", "Lynx hunt hares."]
    _lines(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)])
    _lines(folder / "queries.jsonl", [{"_id": "q0", "text": "what do otters eat"}, {"_id": "q1", "text": "shares"}])
    _lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td2\t1\n"])
    return folder


def test_a_querys_own_document_is_passed_over_unless_it_is_an_answer(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir")
    texts = {"d0": "Otters eat fish in rivers.", "d1": "Herons nest in trees.", "q0": "what do otters eat",
             "q1": "shares", "d2": "The stock market fell."}  # fmt: skip
    _lines(folder / "corpus.jsonl", [{"_id": key, "title": "", "text": text} for key, text in texts.items()])
    _lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td2\t1\n"])
    report, shown = _report(tmp_path, "minilm", "--data", str(folder))
    assert report["models"][0]["metrics"]["ndcg@10"] == 1 and report["num_own_documents"] == 2
    assert "own document of 2 queries" in shown
    _lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\tq1\t1\nq1\td2\t1\n"])
    report, _ = _report(tmp_path, "minilm", "--data", str(folder))
    assert report["models"][0]["metrics"]["ndcg@10"] == 1 and report["num_own_documents"] == 1


def test_a_document_that_only_has_a_querys_number_is_not_its_own() -> None:
    from app.evaluating.retrieval import Collection, _own_documents

    documents = {"9": "x", "1": "Title\nOtters  eat\nfish.", "2": "Otters eat fish.", "3": "Herons nest."}
    queries = {"1": "Otters eat fish.", "2": "Lynx hunt hares.", "3": "Herons nest.", "4": "x"}
    judged = {"2": {"9": 1}, "1": {"9": 1, "1": 0}, "3": {"3": 1}, "4": {"9": 1}}
    collection = Collection(documents, queries, judged, [])
    assert _own_documents(collection, list(documents)) == [[], [1], [], []]
    assert _own_documents(collection, ["9", "2"]) == [[], [], [], []]


def test_search_of_a_set_is_that_of_sorting_everything(tmp_path: Path) -> None:
    """More documents than places and equal texts: the very order, ties by the corpus' own."""
    from app.evaluating.measuring import opened_model
    from app.evaluating.retrieval import Collection, retrieval_set
    from trainer.evaluation import retrieval_metrics

    documents = {f"d{i}": f"fact {i % 60} of {i % 4}" for i in range(150)}
    queries = {f"q{i}": f"what is fact {i}" for i in range(5)} | {"d3": documents["d3"]}
    judged = {key: {f"d{(i * 37) % 150}": 2, f"d{i}": 1} for i, key in enumerate(queries)}
    model = opened_model("minilm", tmp_path)
    found = retrieval_set(Collection(documents, queries, judged, []), "d", "dev").measure(model, lambda *_: None)
    asked_QE = model.asked([*queries.values()]).astype(float)
    documents_DE = model.documents.embed([*documents.values()])[0].astype(float)
    ranked = [
        [f"d{place}" for place in np.argsort(-scores_D, kind="stable") if f"d{place}" != key][:100]
        for key, scores_D in zip(queries, np.einsum("qe,de->qd", asked_QE, documents_DE), strict=True)
    ]
    expected = retrieval_metrics(ranked, list(judged.values()))
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in expected.items()
    }


def test_retrieval_by_a_field_of_the_queries_is_the_mean_over_its_queries(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir")
    queries = [
        {"_id": "q0", "text": "what do otters eat", "template": "_ | _", "year": 1},
        {"_id": "q1", "text": "shares", "template": "_ not _", "year": 2},
        {"_id": "q2", "text": "falling snow", "template": "_ not _"},
        {"_id": "q3", "text": "trees", "template": "unjudged"},
    ]
    _lines(folder / "queries.jsonl", queries)
    _lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td2\t1\nq2\td0\t1\n"])
    report, shown = _report(tmp_path, "minilm", "minilm", "--data", str(folder), "--by", "template")
    assert report["groups"] == {"_ not _": 2, "_ | _": 1}
    metrics = report["models"][0]["metrics"]
    assert metrics["ndcg@10, _ | _"] == 1 and 0 < metrics["ndcg@10, _ not _"] < 1
    assert (metrics["ndcg@10, _ | _"] + 2 * metrics["ndcg@10, _ not _"]) / 3 == pytest.approx(metrics["ndcg@10"])
    assert report["models"][1]["difference"]["ndcg@10, _ not _"] == {"difference": 0, "interval_95": [0, 0]}
    assert "_ not _: 2 queries" in shown and "_ | _: 1 query" in shown

    years, _ = _report(tmp_path, "minilm", "--data", str(folder), "--by", "year")
    assert years["groups"] == {"1": 1, "2": 1}  # a query without the field is in none, and in the whole
    assert years["num_queries"] == 3
    with pytest.raises(
        AppError, match=r"no judged query of .* has it to be sorted by; their fields are template, year"
    ):
        _report(tmp_path, "minilm", "--data", str(folder), "--by", "domain")


def test_a_field_with_a_value_for_every_query_is_refused(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir")
    many = range(31)
    _lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"t{n}", "title": f"of {n}"} for n in many])
    _lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\n", *(f"q{n}\td0\t1\n" for n in many)])
    with pytest.raises(AppError, match="has 31 values, more than 30: name a coarser field"):
        _report(tmp_path, "minilm", "--data", str(folder), "--by", "title")
    with pytest.raises(AppError, match="their fields are title"):
        _report(tmp_path, "minilm", "--data", str(folder), "--by", "_id")


STS = [
    {"text_a": "A man plays a flute.", "text_b": "A man plays the flute.", "score": 4.8, "split": "dev"},
    {"text_a": "A plane takes off.", "text_b": "A plane is landing.", "score": 2.5, "split": "dev"},
    {"text_a": "A cat sleeps.", "text_b": "Prices rose in March.", "score": 0.0, "split": "dev"},
    {"text_a": "A cat sleeps.", "text_b": "A cat naps.", "score": 1.0, "split": "train"},
]
EDITS = [
    {"text_a": "He rarely paid.", "text_b": "He hardly ever paid.", "label": "paraphrase", "split": "dev"},
    {"text_a": "He rarely paid.", "text_b": "He always paid.", "label": "affirmative", "split": "dev"},
    {"text_a": "It is not legal.", "text_b": "It is illegal.", "label": "paraphrase", "split": "dev"},
    {"text_a": "It is not legal.", "text_b": "It is legal now.", "label": "scope", "split": "dev"},
    {"text_a": "Alone.", "text_b": "On its own.", "label": "paraphrase", "split": "dev"},
]


def test_several_sets_and_models_are_compared_over_their_own_units(tmp_path: Path) -> None:
    sts = _lines(tmp_path / "sts" / "pairs.jsonl", STS).parent
    edits = _lines(tmp_path / "edits" / "passage_pairs.jsonl", EDITS).parent
    picture = tmp_path / "picture.png"
    sets = ("--data", str(_beir(tmp_path / "beir")), "--data", str(sts), "--data", str(edits))
    report, shown = _report(tmp_path, "minilm", "minilm", *sets, "--plot", str(picture))
    retrieval, similarity, negation = report["sets"]
    assert (retrieval["kind"], retrieval["num_queries"], retrieval["num_documents"]) == ("retrieval", 2, 4)
    assert retrieval["models"][0]["metrics"]["ndcg@10"] == 1
    assert similarity["num_pairs"] == 3 and similarity["models"][0]["metrics"] == {"spearman": pytest.approx(1)}
    assert negation["num_originals"] == 2
    assert set(negation["models"][0]["metrics"]) == {"closer than any", "closer than affirmative", "closer than scope"}
    for one in report["sets"]:
        for change in one["models"][1]["difference"].values():
            assert change == {"difference": 0, "interval_95": [0, 0]}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Spearman" in shown and "Negation" in shown


def test_a_set_is_named_by_its_content(tmp_path: Path) -> None:
    def digest(data: Path, **more: Any) -> str:
        return opened_set(str(data), "dev", **more).digest

    retrieval, other = digest(_beir(tmp_path / "a")), digest(_beir(tmp_path / "b"))
    assert retrieval == other != digest(tmp_path / "b", pool=1)
    _lines(tmp_path / "b" / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\nq0\td0\t2\nq1\td2\t1\n"])
    assert digest(tmp_path / "b") != retrieval
    swapped = [{**STS[0], "score": 2.5}, {**STS[1], "score": 4.8}, *STS[2:]]
    sets = [STS, swapped, [STS[1], STS[0], *STS[2:]], EDITS, [{**EDITS[0], "label": "scope"}, *EDITS[1:], EDITS[0]]]
    found = {digest(_lines(tmp_path / f"{number}.jsonl", rows)) for number, rows in enumerate(sets)}
    assert len(found) == len(sets)
    assert digest(_lines(tmp_path / "again.jsonl", [*STS[:3]])) in found  # rows of other splits are no part of it


def test_graded_order_of_a_release(tmp_path: Path, toy_releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(toy_releases / "gradus"))
    report, shown = _report(tmp_path, "minilm", "minilm", "--data", "toy-1.0.0", "--split", "train")
    assert report["kind"] == "order" and report["release"] == "toy-1.0.0" and report["num_examples"] > 3
    metrics = report["models"][0]["metrics"]
    assert {"order", "tau_b", "positive above N1", "N4 in order"} <= set(metrics)
    assert all(-1 <= value <= 1 for value in metrics.values())
    assert "tau-b" in shown and "(+0.000 to +0.000)" in shown


def test_a_metric_without_a_value_is_left_out_and_not_zero(tmp_path: Path) -> None:
    from app.evaluating.measuring import EvaluationSet, opened_model, report_of

    metrics, nothing = ("order", "tau_b", "N1 in order", "N2 in order"), np.full(3, np.nan)
    values = [
        dict(zip(metrics, ([1.0, 0.5, 0.0], [0.5, np.nan, 0.0], nothing, nothing), strict=True)),
        dict(zip(metrics, ([1.0, 1.0, 0.0], [1.0, np.nan, 0.0], nothing, [1.0, 1.0, 1.0]), strict=True)),
    ]
    arrays = [{name: np.array(column) for name, column in of.items()} for of in values]
    one = EvaluationSet("order", "toy", "dev", "examples", 3, metrics, "0" * 64, lambda *_: {})
    report = report_of(one, [opened_model("minilm", tmp_path)] * 2, arrays)
    assert report["metrics"] == ["order", "tau_b"]
    first, second = report["models"]
    assert first["metrics"] == {"order": 0.5, "tau_b": 0.25} and second["metrics"]["tau_b"] == 0.5
    assert second["difference"]["tau_b"]["difference"] == 0.25 and set(second["difference"]) == {"order", "tau_b"}


def test_one_set_is_its_own_report_and_bad_rows_are_told(tmp_path: Path) -> None:
    folder = _lines(tmp_path / "sts" / "pairs.jsonl", [*STS, "{torn\n", {"text_a": "x", "split": "dev"}]).parent
    with pytest.raises(AppError, match=r"2 bad row\(s\) .* pairs.jsonl:5: is not JSON"):
        _report(tmp_path, "minilm", "--data", str(folder))
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["num_pairs"] == 3 and len(report["faults"]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([STS[3]], "has no pair of split 'dev'; it has train"),
        (EDITS[1:2], "neither numbers in 'score' nor"),
        ([STS[0]], "two pairs or more"),
    ],
)
def test_pairs_that_cannot_be_measured_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        _report(tmp_path, "minilm", "--data", str(_lines(tmp_path / "pairs" / "pairs.jsonl", rows).parent))


def test_unknown_folders_pictures_and_code_are_refused_before_anything_is_spent(tmp_path: Path) -> None:
    with pytest.raises(AppError, match="neither a BEIR folder"):
        _report(tmp_path, "minilm", "--data", str(tmp_path))
    with pytest.raises(AppError, match=r"must end in \.png or \.svg"):
        _report(tmp_path, "minilm", "--data", str(tmp_path), "--plot", "a.pdf")
    _lines(tmp_path / "model" / "modules.json", [{}])
    _lines(tmp_path / "model" / "modeling_ata.py", ["raise SystemExit\n"])
    with pytest.raises(CurationError, match="not the one of this version"):
        _report(tmp_path, str(tmp_path / "model"), "--data", str(_beir(tmp_path / "beir")))


@pytest.mark.parametrize("name", ["nanobeir:NFCorpus", "mteb:scifact"])
def test_a_hub_out_of_reach_is_said_in_a_line(tmp_path: Path, name: str) -> None:
    import os
    import subprocess
    import sys

    quiet = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [str(Path(sys.executable).parent / "gradus"), "evaluate", "minilm", "--data", name]
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "the Hub did not give it" in done.stderr.splitlines()[-1]


@pytest.fixture
def minilm_with(tmp_path: Path) -> Any:
    """MiniLM as a folder that names prompts, or that a training with a place for an instruction left."""
    import shutil

    from curation.embeddings import model_folder

    def made(name: str, prompts: dict[str, str], training: Any = None) -> Path:
        folder = tmp_path / "data" / "models" / name
        shutil.copytree(model_folder("minilm"), folder)
        config = folder / "config_sentence_transformers.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "prompts": prompts}))
        if training is not None:
            (folder / "training.json").write_text(training if isinstance(training, str) else json.dumps(training))
        return folder

    return made


def _like(model: str, prompt: str, texts: list[str]) -> Any:
    """What the model makes of texts with a prompt before each, in one list."""
    from curation.embeddings import BiEncoder

    return BiEncoder(model, prompt=prompt).encode(texts)[0]


TRAINED = {"recipe": {"query_prompt": "Task: {instruction} | ", "passage_prompt": "doc: "}}


def test_a_model_is_asked_with_the_instruction_it_was_trained_with(tmp_path: Path, minilm_with: Any) -> None:
    from app.evaluating.measuring import opened_model
    from app.evaluating.prompting import Prompts

    data = ("--data", str(_beir(tmp_path / "beir")))
    minilm_with("many", {"query": "", "document": "doc: "}, TRAINED)
    with pytest.raises(AppError, match=r"--instruction is missing: model many .*'Task: {instruction} \| '.*/beir "):
        _report(tmp_path, "many", *data)
    assert not (tmp_path / "data" / "embeddings").exists()
    report, _ = _report(tmp_path, "many", *data, "--instruction", "find it")
    expected = {"query": "Task: {instruction} | ", "document": "doc: ", "instruction": "find it"}
    assert report["models"][0]["prompts"] == expected
    # One instruction for all of its examples: known from the training; another may be asked for.
    minilm_with("one", {"query": "Task: answer | ", "document": "doc: "}, {**TRAINED, "instruction": "answer"})
    texts = ["otters", "do they eat"]
    for given, prompt in ((None, "Task: answer | "), ("find", "Task: find | ")):
        model = opened_model("one", tmp_path, otherwise=Prompts(instruction=given))
        np.testing.assert_allclose(model.asked(texts), _like("minilm", prompt, texts), atol=2e-3)
        np.testing.assert_allclose(model.documents.embed(["fish"])[0], _like("minilm", "doc: ", ["fish"]), atol=2e-3)


def test_examples_of_a_release_are_asked_with_their_own_instructions(tmp_path: Path, minilm_with: Any) -> None:
    from app.evaluating.measuring import EvaluatedModel, opened_model
    from app.evaluating.prompting import Prompts

    model = opened_model(str(minilm_with("many", {}, TRAINED)), tmp_path, otherwise=Prompts(instruction="else"))
    queries, instructions = ["a", "bbb", "cc", "dddd"], ["x", "count them all", "x", ""]
    prompts = [f"Task: {instruction or 'else'} | " for instruction in instructions]
    alone = [_like("minilm", prompt, [query])[0] for prompt, query in zip(prompts, queries, strict=True)]
    np.testing.assert_allclose(model.asked(queries, instructions), alone, atol=2e-3)
    np.testing.assert_allclose(model.asked(["a", "cc"], ["x", "x"]), [alone[0], alone[2]], atol=2e-3)
    plain = EvaluatedModel("m", model.encoder, tmp_path, Prompts("query: "))
    np.testing.assert_allclose(plain.asked(queries, instructions), _like("minilm", "query: ", queries), atol=2e-3)


def test_prompts_are_given_to_models_that_name_none_and_only_to_them(tmp_path: Path, minilm_with: Any) -> None:
    data = ("--data", str(_beir(tmp_path / "beir")))
    own = minilm_with("own", {"query": "q: "})
    given = ("--query-prompt", "{instruction}: ", "--passage-prompt", "p: ", "--instruction", "find")
    report, _ = _report(tmp_path, "minilm", str(own), *data, *given)
    assert [(model["prompts"]["query"], model["prompts"]["document"]) for model in report["models"]] == [
        ("{instruction}: ", "p: "),
        ("q: ", ""),
    ]
    with pytest.raises(AppError, match="every model names prompts of its own"):
        _report(tmp_path, str(own), *data, "--query-prompt", "x")
    with pytest.raises(AppError, match="no model's prompt has a place for it"):
        _report(tmp_path, str(own), *data, "--instruction", "x")


@pytest.mark.parametrize("training", ["{torn", {"recipe": {"query_prompt": 3}}, [1]])
def test_a_training_json_of_another_kind_is_refused(tmp_path: Path, minilm_with: Any, training: Any) -> None:
    minilm_with("odd", {}, training)
    with pytest.raises(AppError, match=r"training.json: .*it is not what gradus train writes"):
        _report(tmp_path, "odd", "--data", str(_beir(tmp_path / "beir")))
