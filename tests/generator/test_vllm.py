"""The offline engine as far as it goes without vLLM; tests/vllm runs it on the real one."""

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from pydantic import ValidationError

from generator.engines import vllm
from generator.errors import GeneratorError
from generator.ledger import Wanted
from generator.recipe import VllmEngine


class OneTake:
    """A desk that hands out what it is given, once."""

    def __init__(self, items: list[Wanted]) -> None:
        self.items, self.given_back = items, list[Wanted]()

    def take(self, limit: int) -> list[Wanted]:
        taken, self.items = self.items[:limit], self.items[limit:]
        return taken

    def refill(self) -> bool:
        return False

    def give_back(self, items: list[Wanted]) -> None:
        self.given_back += items


def engine(**fields: Any) -> VllmEngine:
    return VllmEngine.model_validate({"kind": "vllm", **fields})


def test_importing_the_engine_does_not_import_vllm() -> None:
    code = "import sys, generator.engines.vllm; sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_with_nothing_to_ask_loads_no_model() -> None:
    vllm.run(OneTake([]), engine(model_path="no such folder"), "m")  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_one_line_says_what_to_do_and_all_is_given_back() -> None:
    item = Wanted(1, "one", 0, b"{}")
    desk = OneTake([item])
    with pytest.raises(GeneratorError, match=r"scripts/install_vllm\.sh"):
        vllm.run(desk, engine(), "m")  # type: ignore[arg-type]
    assert desk.given_back == [item]


def test_what_the_recipe_leaves_out_is_vllms_choice() -> None:
    arguments = vllm.engine_arguments(engine(max_num_seqs=7, seed=3), "m", on_cpu=False)
    structured = arguments.pop("structured_outputs_config")
    assert structured["backend"] == "guidance"
    assert arguments == {
        "model": "m", "enable_prefix_caching": True, "dtype": "auto", "max_num_seqs": 7, "tensor_parallel_size": 1,
        "seed": 3,
    }  # fmt: skip


def test_engine_args_have_the_last_word() -> None:
    given = {"enable_prefix_caching": False, "enable_chunked_prefill": True, "enforce_eager": True}
    arguments = vllm.engine_arguments(engine(engine_args=given), "m", on_cpu=True)
    assert given.items() <= arguments.items()
    assert vllm.engine_arguments(engine(), "m", on_cpu=True)["enable_chunked_prefill"] is False


@pytest.mark.parametrize(("twice", "told"), [("dtype", "'dtype'"), ("model", "'model_path'")])
def test_a_key_that_the_engine_has_itself_is_refused_among_engine_args(twice: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        engine(engine_args={twice: "x"})
