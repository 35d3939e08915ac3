"""Sets of a Hub: the real clients, each in a process of its own, against the loopback one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CORPUS = [
    ("d0", "Otters eat fish in rivers."),
    ("d1", "Herons nest in tall trees."),
    ("d2", "The stock market fell on Monday."),
    ("d3", "Lynx hunt hares in the snow."),
    ("d4", ""),
    ("d5", "Fish markets open before dawn."),
]
QUERIES = [("q0", "what do otters eat"), ("q1", "shares"), ("q2", "animals in winter"), ("q3", "nobody judged this")]
QRELS = [("q0", "d0"), ("q0", "d3"), ("q1", "d2"), ("q2", "d3"), ("q2", "d1")]
# As sentence-transformers keeps NanoBEIR: three configurations, each with a split per collection.
_PUSH_NANO = """
import json, sys
from datasets import Dataset
rows = json.loads(sys.argv[1])
for config, of in rows.items():
    for split in ("NanoSciFact", "NanoFiQA2018"):
        Dataset.from_list(of).push_to_hub("sentence-transformers/NanoBEIR-en", config, split=split)
"""
# As MTEB keeps a retrieval task: texts under splits of their own names, judgments as the configuration `default`.
_PUSH_MTEB = """
import json, sys
from datasets import Dataset
rows = json.loads(sys.argv[1])
Dataset.from_list(rows["corpus"]).push_to_hub("mteb/scifact", "corpus", split="corpus")
Dataset.from_list(rows["queries"]).push_to_hub("mteb/scifact", "queries", split="queries")
Dataset.from_list(rows["qrels"]).push_to_hub("mteb/scifact", "default", split="test")
"""
_EVALUATE = "from app.cli import main; main()"
_THEIRS = """
import json, sys
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import NanoBEIREvaluator
evaluator = NanoBEIREvaluator(["scifact"], write_csv=False)
values = evaluator(SentenceTransformer(sys.argv[1], device="cpu"))
print(json.dumps({name.split("cosine_")[-1]: value for name, value in values.items() if "SciFact" in name}))
"""


_READ = """
import json, sys
from app.errors import AppError
from app.evaluating.sets import opened_set
try:
    read = opened_set(*sys.argv[1:])
    print(json.dumps([read.facts["num_documents"], read.num_units, read.split, read.faults]))
except AppError as error:
    print(json.dumps(str(error)))
"""


def _python(script: str, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _rows(*, with_scores: bool) -> str:
    score = {"score": 1} if with_scores else {}
    title = {"title": ""} if with_scores else {}
    return json.dumps(
        {
            "corpus": [{"_id": key, **title, "text": text} for key, text in CORPUS],
            "queries": [{"_id": key, "text": text} for key, text in QUERIES],
            "qrels": [{"query-id": query, "corpus-id": document, **score} for query, document in QRELS],
        }
    )


def test_nanobeir_gives_what_sentence_transformers_gives(hub: Any, tmp_path: Path) -> None:
    from curation.embeddings import model_folder

    _python(_PUSH_NANO, hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="1"), _rows(with_scores=False))
    reader = hub.environment(tmp_path / "reader")
    file = tmp_path / "report.json"
    _python(_EVALUATE, reader, "evaluate", "minilm", "--data", "nanobeir:SciFact", "--json", str(file))
    report = json.loads(file.read_bytes())
    # A document without a text and a query without a judgment stay out, as they do there.
    assert (report["num_documents"], report["num_queries"], report["split"]) == (5, 3, "NanoSciFact")
    ours = report["models"][0]["metrics"]
    theirs = json.loads(_python(_THEIRS, reader, str(model_folder("minilm"))))
    assert ours["ndcg@10"] == pytest.approx(theirs["ndcg@10"], abs=1e-6) and 0.5 < ours["ndcg@10"] < 1
    assert ours["mrr@10"] == pytest.approx(theirs["mrr@10"], abs=1e-6)

    refused = json.loads(_python(_READ, reader, "nanobeir:Otters", "dev"))
    assert "no configuration 'corpus' with split 'NanoOtters'" in refused and "NanoFiQA2018" in refused


def test_mteb_layout_is_read_with_its_judgments_as_default(hub: Any, tmp_path: Path) -> None:
    _python(_PUSH_MTEB, hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="1"), _rows(with_scores=True))
    reader = hub.environment(tmp_path / "reader")
    read = json.loads(_python(_READ, reader, "mteb:SciFact", "test"))
    assert read == [5, 3, "test", []]
    offline = reader | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert json.loads(_python(_READ, offline, "mteb:SciFact", "test")) == read
    refused = json.loads(_python(_READ, reader, "mteb:SciFact", "dev"))
    assert "no configuration 'default' with split 'dev'" in refused and "test" in refused
