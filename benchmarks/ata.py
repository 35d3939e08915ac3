"""What does ATA pooling cost against mean pooling, and is it exact against eager attention?

Usage: python benchmarks/ata.py [--model minilm] [--lengths 128 512] [--tokens 2048] [--rounds 9] [--threads 1]
                                [--precision fp32 bf16] [--device cpu] [--ragged] [--no-eager]

Arms over the same random token ids: mean pooling (sentence-transformers' own), ATA with its gradient, ATA with detached
weights, and eager attention in every layer with the formula written out over `output_attentions`. Two measures: the
forward pass without gradients, and a training step (forward, backward). Arms take turns in each round, starting with
another one each time; the ratio is the median over rounds of an arm's time by mean pooling's in the same round.
Processor time on a CPU, wall time around a synchronised GPU. Beside the times: the largest difference of the unit
embeddings to the eager arm's in the same precision. --ragged pads: texts have between half of the length and all.
Targets: at most 3 % more than mean pooling at 128 tokens, 10 % at 512.
"""

import argparse
import copy
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ARMS = {"mean": "mean pooling", "ata": "ATA", "detached": "ATA, detached weights", "eager": "eager attention"}
TARGETS = {128: 1.03, 512: 1.10}


def build_arms(model: str, device: str, with_eager: bool) -> dict[str, Any]:
    """A model per arm, all with the same weights, without dropout."""
    import torch

    from curation.embeddings import any_model_folder
    from trainer.backbones import load_model

    folder = any_model_folder(model)
    arms: dict[str, Any] = {
        "mean": load_model(folder, pooling="own", device=device),
        "ata": load_model(folder, device=device),
        "detached": load_model(folder, detach_weights=True, device=device),
    }
    if with_eager:
        arms["eager"] = load_model(folder, pooling="own", attention="eager", device=device)[0].model
    for arm in arms.values():
        for module in arm.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return arms


def eager_embeddings(backbone: Any, features: dict[str, Any]) -> Any:
    """The definition over the attention that every layer returns; for encoders."""
    import torch

    out = backbone(**features, output_attentions=True)
    valid = features["attention_mask"].float()
    lengths = valid.sum(1)[:, None, None, None]
    scores = torch.log1p(lengths * out.attentions[-1].float()) * valid[:, None, :, None]
    weights = scores.sum((1, 2)) * valid
    return ((weights / weights.sum(1, keepdim=True))[..., None] * out.last_hidden_state.float()).sum(1)


def steps_of(arms: dict[str, Any], features: dict[str, Any], bf16: bool) -> dict[str, Callable[[bool], Any]]:
    """For each arm, what runs it once: forward without gradients, or forward and backward."""
    import torch

    device = features["input_ids"].device.type

    def run(name: str, arm: Any, trains: bool) -> Any:
        arm.train(trains)
        arm.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(trains), torch.autocast(device, torch.bfloat16, enabled=bf16):
            given = dict(features)
            pooled = eager_embeddings(arm, given) if name == "eager" else arm(given)["sentence_embedding"]
        vectors = torch.nn.functional.normalize(pooled.float(), dim=-1)
        if trains:
            (vectors @ vectors.T).logsumexp(1).sum().backward()
        return vectors.detach()

    return {name: (lambda trains, n=name, a=arm: run(n, a, trains)) for name, arm in arms.items()}


def seconds(step: Callable[[bool], Any], trains: bool, device: str) -> float:
    import torch

    if device == "cpu":
        start = time.process_time()
        step(trains)
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step(trains)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def token_ids(length: int, num_tokens: int, device: str, ragged: bool) -> dict[str, Any]:
    import torch

    draws = torch.Generator().manual_seed(length)
    num_texts = max(1, num_tokens // length)
    ids = torch.randint(1_000, 20_000, (num_texts, length), generator=draws)
    mask = torch.ones_like(ids)
    if ragged:
        kept = torch.randint(length // 2, length + 1, (num_texts,), generator=draws)
        kept[0] = length
        mask = (torch.arange(length) < kept[:, None]).long()
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.to(device)}


def compare(arms: dict[str, Any], length: int, precision: str, options: argparse.Namespace) -> None:
    """Table rows of one length and precision."""
    features = token_ids(length, options.tokens, options.device, options.ragged)
    steps = steps_of(arms, features, precision == "bf16")
    vectors = {name: step(False) for name, step in steps.items()}
    for trains in (False, True):
        times: dict[str, list[float]] = {name: [] for name in steps}
        names = list(steps)
        for turn in range(options.rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                spent = seconds(steps[name], trains, options.device)
                if turn:  # the first round warms up
                    times[name].append(spent)
        for name, spent in times.items():
            ratios = [one / base for one, base in zip(spent, times["mean"], strict=True)]
            error = "-"
            if name in ("ata", "detached") and "eager" in vectors:
                error = f"{float((vectors[name] - vectors['eager']).abs().max()):.1e}"
            target = TARGETS.get(length) if name in ("ata", "detached") else None
            verdict = "-" if target is None else f"{'met' if median(ratios) <= target else 'missed'} ({target:.2f})"
            print(
                f"| {length} | {precision} | {'training step' if trains else 'forward'} | {ARMS[name]} "
                f"| {1e3 * median(spent):.1f} ({1e3 * min(spent):.1f} to {1e3 * max(spent):.1f}) "
                f"| {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {verdict} | {error} |",
                flush=True,
            )


def machine(device: str, threads: int) -> str:
    from importlib import metadata

    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    if device != "cpu":
        name = f"{torch.cuda.get_device_name()}, {name}"
    versions = ", ".join(f"{one} {metadata.version(one)}" for one in ("torch", "transformers", "sentence-transformers"))
    load = os.getloadavg()[0]
    return (
        f"{name}, {os.cpu_count()} cores, {threads} thread(s), load {load:.1f}; Python {platform.python_version()}, "
        f"{versions}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--tokens", type=int, default=2_048, help="Tokens in a batch, padding included.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ragged", action="store_true")
    parser.add_argument("--no-eager", action="store_true")
    options = parser.parse_args()
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(options.threads)
    arms = build_arms(options.model, options.device, not options.no_eager)
    shape = "ragged" if options.ragged else "full"
    print(f"{options.model}, {options.tokens:,} tokens a batch, {shape}, {options.rounds} rounds.")
    print(f"{machine(options.device, options.threads)}\n")
    print("| tokens | precision | measure | arm | ms, median (min to max) | x mean pooling | target | error |")
    print("|---|---|---|---|---|---|---|---|")
    for precision in options.precision:
        for length in options.lengths:
            compare(copy.copy(arms), length, precision, options)


if __name__ == "__main__":
    main()
