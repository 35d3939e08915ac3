"""The folder of a trained model: weights, summary, card, and the journal of its training."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import orjson
import torch
from sentence_transformers import SentenceTransformer

from trainer.backbones import save_model
from trainer.journal import Journal


def write_model(model: SentenceTransformer, journal: Journal, summary: dict[str, Any], folder: Path) -> None:
    """Write all that stays of a training; `folder` is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_model(model.eval(), folder)
    journal.finish(folder)
    (folder / "README.md").write_text(_card(summary, has_code=(folder / "modeling_ata.py").is_file()), encoding="utf-8")
    (folder / "training.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")


def machine(device: torch.device) -> str:
    """Where it ran, in words; the GPU where it was one."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    threads = torch.get_num_threads()
    told = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{name}, {os.cpu_count()} cores, {told}, torch {torch.__version__}"


def _card(summary: dict[str, Any], *, has_code: bool) -> str:
    recipe = summary["recipe"]
    trusted = ", trust_remote_code=True" if has_code else ""
    code = "The pooling is in `modeling_ata.py` beside this file. " if has_code else ""
    return (
        f"---\nlibrary_name: sentence-transformers\ntags: [sentence-transformers, graded-negatives]\n---\n\n"
        f"# {recipe['name']}\n\n"
        f"`{Path(recipe['model']).name}` trained on release `{summary['release']}` "
        f"(digest {summary['release_digest'][:16]}): {summary['num_examples']:,} examples, "
        f"{summary['num_steps']:,} steps, schedule `{recipe['schedule']}`, "
        f"pooling `{recipe['pooling']}`, seed {recipe['seed']}.\n\n"
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{recipe["name"]}"{trusted})\n```\n\n'
        f"{code}`training.json` holds the whole recipe, `metrics.jsonl` "
        "every step by rank (`runs/` the same for TensorBoard), `margins.parquet` the margin of every negative when "
        "it was trained on.\n"
    )
