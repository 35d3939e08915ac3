"""ATA pooling inside sentence-transformers: copies, files, processes, adapters, cached losses, checkpointing."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from trainer.backbones import save_model, with_pooling


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformer:
    from curation.embeddings import model_folder

    base = SentenceTransformer(str(model_folder("minilm")))
    return with_pooling(base)


TEXTS = ["Short.", "A longer sentence, with commas, about the role of anchors in pooling.", "words " * 300]


def test_copies_and_pickles_give_the_same_vectors(minilm: SentenceTransformer) -> None:
    expected = minilm.encode(TEXTS)
    for other in (copy.deepcopy(minilm), pickle.loads(pickle.dumps(minilm))):
        assert (other.encode(TEXTS) == expected).all()
        assert (minilm.encode(TEXTS) == expected).all()


def test_saved_and_saved_again_it_loads_without_gradus(minilm: SentenceTransformer, tmp_path: Path) -> None:
    save_model(minilm, tmp_path / "one")
    code = (
        "import sys, numpy as np\n"
        "from sentence_transformers import SentenceTransformer\n"
        "texts = eval(sys.argv[1])\n"
        "first = SentenceTransformer('one', trust_remote_code=True)\n"
        "first.save('two', create_model_card=False)\n"
        "second = SentenceTransformer('two', trust_remote_code=True)\n"
        "assert not any(name.split('.')[0] == 'trainer' for name in sys.modules)\n"
        "np.save('out.npy', np.stack([first.encode(texts), second.encode(texts)]))\n"
    )
    env = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, repr(TEXTS)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = np.load(tmp_path / "out.npy")
    assert (first == minilm.encode(TEXTS)).all() and (second == first).all()


def test_untrusted_loading_is_refused(minilm: SentenceTransformer, tmp_path: Path) -> None:
    save_model(minilm, tmp_path / "one")
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "one"))
