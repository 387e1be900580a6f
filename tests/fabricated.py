"""Run directories as the pipeline leaves them, with invented numbers, for the tests and the pictures of the report.

python tests/fabricated.py DIRECTORY    writes a demo pipeline there and its report.html
"""

import hashlib
import json
import math
import random
import struct
import sys
from pathlib import Path

from athanor.evaluation.statistics import interval

FAMILIES = {
    "addition": ("What is {a} + {b}?", "{a} 加 {b} 等于多少？"),
    "comparison": ("Which is larger, {a} or {b}?", "{a} 和 {b} 哪个更大？"),
    "counting": ("How many times does the letter e occur in {w}?", "“{z}”一共有几个字？"),
    "copying": ("Repeat exactly: {w}", "请原样重复：{z}"),
    "reversing": ("Write {w} backwards.", "把“{z}”倒过来写。"),
    "sorting": ("Sort in ascending order: {a} {b} {c}", "从小到大排列：{a} {b} {c}"),
    "dates": ("Which day comes {c} days after 3 March?", "3月3日之后的第 {c} 天是几月几日？"),
    "units": ("How many metres are {c} kilometres?", "{c} 公里等于多少米？"),
}
WORDS = [
    ("furnace", "炉火纯青"),
    ("mercury", "水到渠成"),
    ("ember", "点石成金"),
    ("crucible", "百炼成钢"),
    ("salt and sulphur", "开门见山"),
]
SKILL = {"pretrain/demo": 0.02, "sft/demo": 0.52, "dpo/demo": 0.63, "ppo/demo": 0.69}
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


def fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Builder:
    """Writes runs under `root`; each method makes one kind of run and returns its directory."""

    def __init__(self, root: Path, seed: int = 1):
        self.root, self.random, self.clock = Path(root), random.Random(seed), 1_767_225_600.0
        self.directories: dict[str, Path] = {}

    def run(self, name, kind, science, inputs, seconds, *, status="finished", files=None, **extra) -> Path:
        mark = fingerprint(json.dumps([name, science, inputs], default=str, sort_keys=True))
        directory = self.root / name / mark
        directory.mkdir(parents=True)
        described = {}
        for key, value in inputs.items():
            if isinstance(value, Path):
                parent = json.loads((value / "manifest.json").read_text())
                described[key] = {
                    "kind": "run",
                    "fingerprint": parent["fingerprint"],
                    "name": parent["name"],
                    "directory": str(value),
                }
            else:
                described[key] = {"kind": "files", "fingerprint": fingerprint(key), "files": value}
        manifest = {
            "format": 1,
            "name": name,
            "kind": kind,
            "fingerprint": mark,
            "status": status,
            "science": science,
            "config": {**science, "cluster": {"accelerator": "cpu", "devices": 1, "micro_batch_size": 16}},
            "overrides": [],
            "inputs": described,
            "code": {"commit": "4093c41f2a7be0d1c5ac41f2a7be0d1c5ac41f2a", "diff_sha256": None},
            "packages": {"torch": "2.13.0+cpu", "lightning": "2.6.6", "sentencepiece": "0.2.3", "numpy": "2.4.6"},
            "hardware": {
                "cpu": "Intel(R) Xeon(R) Processor @ 2.60GHz",
                "cores": 2,
                "memory": 25276510208,
                "gpus": [],
                "python": "3.11.2",
                "platform": "Linux-6.1-x86_64",
            },
            "started": self.clock,
            "finished": self.clock + seconds,
            "seconds": seconds,
            "attempts": [{"started": self.clock, "seconds": seconds}],
            "outputs": {},
            "metrics": {},
            "command": "athanor pipeline experiment=pipelines/demo",
            **extra,
        }
        self.clock += seconds
        for file, content in (files or {}).items():
            (directory / file).write_text(content if isinstance(content, str) else json.dumps(content))
        (directory / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False))
        self.directories[name] = directory
        return directory

    def documents(self, name, sources, drops, inputs, hostile=False) -> Path:
        samples = {
            "too short": ["See also: os.path", "参见", "TODO"],
            "near-duplicate": ["Return the size of the file in bytes.\n\nRaises OSError if it does not exist …"],
            "mostly symbols": ["0x1F 0x2E ::: ==== ---- #### ++++ ||||"],
            "exact duplicate": ["Return a new array object."],
        }
        if hostile:
            samples["too short"].append(HOSTILE)
        count, steps = sum(s["documents"] for s in sources.values()), []
        for step, dropped in drops.items():
            steps.append(
                {
                    "name": step,
                    "in": count,
                    "out": count - sum(dropped.values()),
                    "dropped": dropped,
                    "counts": {"changed": 84} if step == "normalize" else {},
                    "samples": {reason: samples.get(reason, []) for reason in dropped},
                }
            )
            count = steps[-1]["out"]
        languages = {"en": {"documents": count - 900, "bytes": 4_000_000}, "zh": {"documents": 900, "bytes": 9_000}}
        cleaning = {"sources": sources, "steps": steps, "languages": languages}
        job = {"job": {"_target_": "athanor.corpus.prepare.PrepareDocuments"}}
        return self.run(name, "prepare", job, inputs, 21.4, files={"cleaning.json": cleaning})

    def train(
        self, name, algorithm, inputs, seconds, steps, series, *, parameters=4_720_000, status="finished", **science
    ):
        """`series` maps a metric to (start, end, noise, every) of an exponential approach."""
        events: dict[int, dict] = {}
        for metric, (start, end, noise, every) in series.items():
            for step in range(every, steps + 1, every):
                level = end + (start - end) * math.exp(-4.5 * step / steps)
                value = level * math.exp(self.random.gauss(0, noise)) if noise < 1 else level
                events.setdefault(step, {})[metric] = value
        lines = [{"step": s, "time": self.clock + seconds * s / steps, **events[s]} for s in sorted(events)]
        science = {
            "algorithm": {"_target_": f"athanor.algorithms.{algorithm.lower()}.{algorithm}", **science},
            "model": {"_target_": "athanor.models.transformer.Transformer", "width": 256, "layers": 6},
            "seed": 1,
            "max_steps": steps,
            "global_batch_size": 32,
            "precision": "bf16-mixed",
        }
        header = json.dumps({"blocks": {"dtype": "F32", "shape": [parameters // 1000, 1000], "data_offsets": [0, 0]}})
        samples = [{"step": steps, "prompt": "What is 12 + 30?", "response": "42"}]
        directory = self.run(
            name,
            "train",
            science,
            inputs,
            seconds,
            status=status,
            files={
                "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
                "samples.jsonl": "".join(json.dumps(s) + "\n" for s in samples),
            },
        )
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
        return directory

    def questions(self, per_cell=18):
        made = []
        for family, templates in FAMILIES.items():
            for language, template in zip(("en", "zh"), templates):
                for index in range(per_cell):
                    draw = random.Random(f"{family}{language}{index}")
                    a, b, c = draw.randint(10, 99), draw.randint(10, 99), draw.randint(2, 9)
                    word, chinese = draw.choice(WORDS)
                    answer = {
                        "addition": a + b,
                        "comparison": max(a, b),
                        "copying": word if language == "en" else chinese,
                        "reversing": (word if language == "en" else chinese)[::-1],
                        "counting": word.count("e") if language == "en" else len(chinese),
                        "sorting": " ".join(map(str, sorted((a, b, c)))),
                        "dates": f"{3 + c} March" if language == "en" else f"3月{3 + c}日",
                        "units": c * 1000,
                    }[family]
                    made.append(
                        {
                            "id": f"{family}-{language}-{index}",
                            "family": family,
                            "language": language,
                            "level": 1 + index % 3,
                            "prompt": template.format(a=a, b=b, c=c, w=word, z=chinese),
                            "answer": str(answer),
                            "hardness": draw.random() ** (1.5 if family in ("copying", "comparison", "units") else 0.7),
                        }
                    )
        return made

    def evaluation(self, model: Path, inputs, skill=None, hostile=False) -> Path:
        subject = json.loads((model / "manifest.json").read_text())
        metrics, per_item, samples, questions = [], {}, [], self.questions()

        def add(name, unit, better, ids, values, slices, weights=None):
            for one in slices:
                where = [i for i, q in enumerate(ids) if all(q.get(k) == v for k, v in one.items())]
                found = interval([values[i] for i in where], weights and [weights[i] for i in where])
                metrics.append({"name": name, "slice": one, **found._asdict(), "unit": unit, "better": better})
            per_item[name] = {"ids": [q["id"] for q in ids], "values": values}
            per_item[name]["slices"] = {k: [q[k] for q in ids] for k in ("language", "family", "level") if k in ids[0]}
            if weights:
                per_item[name]["weights"] = weights

        cells = [{}, *({"language": k} for k in ("en", "zh")), *({"family": k} for k in FAMILIES)]
        cells += [{"level": k} for k in (1, 2, 3)]
        cells += [{"language": k, "family": f} for k in ("en", "zh") for f in FAMILIES]
        if skill is not None:
            luck = random.Random(subject["name"])
            right = [float(q["hardness"] + luck.gauss(0, 0.12) < skill) for q in questions]
            add("exact_match", "fraction", "higher", questions, right, cells)
            for question, value in zip(questions, right):
                wrong = HOSTILE if hostile and question is questions[0] else question["answer"][:-1] + "7"
                if skill < 0.1:
                    wrong = (
                        "Return the number of items in the container, or raise"
                        if question["language"] == "en"
                        else "的的的"
                    )
                if question["id"].rsplit("-", 1)[1] in "01":
                    samples.append(
                        {key: question[key] for key in ("id", "prompt", "answer", "language", "family", "level")}
                        | {"response": question["answer"] if value else wrong, "correct": bool(value)}
                    )
            far = abs(skill - SKILL["sft/demo"]) * 3
            kl = [far * luck.expovariate(1) for _ in questions]
            add("reward", "reward", "higher", questions, [4 * r - 2 + luck.gauss(0, 0.7) for r in right], cells[:3])
            add("kl_to_reference", "nats/token", "none", questions, kl, cells[:1], [luck.randint(2, 9) for _ in kl])
            add("kl_of_response", "nats/response", "none", questions, kl, cells[:1])
            pairs = [float(luck.random() < 0.5 + skill / 2) for _ in questions]
            add("implicit_preference_accuracy", "fraction", "higher", questions, pairs, cells[:3])
            lengths = [luck.choice([0.0, 0.5, 1.0]) for _ in questions]
            add("length_baseline_accuracy", "fraction", "none", questions, lengths, cells[:3])
            documents = [{"id": f"validation/{i}", "language": "en" if i % 5 else "zh"} for i in range(160)]
            tokens = [luck.randint(60, 900) for _ in documents]
            nats = [t * (2.1 + 0.3 * (skill - 0.02) + luck.gauss(0, 0.3)) for t in tokens]
            add("loss_per_token", "nats/token", "lower", documents, nats, cells[:3], tokens)
            bits = [n / math.log(2) for n in nats]
            add("bits_per_byte", "bits/byte", "lower", documents, bits, cells[:3], [t * 3.3 for t in tokens])
        else:
            luck = random.Random(subject["name"])
            right = [float(luck.random() < 0.94) for _ in questions]
            add("preference_accuracy", "fraction", "higher", questions, right, cells)
            lengths = [luck.choice([0.0, 0.5, 1.0]) for _ in questions]
            add("length_baseline_accuracy", "fraction", "none", questions, lengths, cells[:3])
        science = {"job": {"_target_": "athanor.evaluation.evaluate.Evaluation"}, "of": subject["fingerprint"]}
        results = {
            "model": {"name": subject["name"], "fingerprint": subject["fingerprint"]},
            "metrics": metrics,
            "per_item": per_item,
            "samples": samples,
        }
        name = "evaluate/" + ("reward-demo" if skill is None else "demo")
        directory = self.run(
            name, "evaluate", science, {"model": model, **inputs}, 9.3, files={"results.json": results}
        )
        self.directories["evaluate-" + subject["name"].split("/")[0]] = directory
        return directory


def demo(root: Path, hostile: bool = False) -> dict[str, Path]:
    """The whole demo pipeline: step name -> run directory."""
    make = Builder(root)
    stdlib = [{"path": "stdlib/argparse.py", "sha256": "0" * 64, "bytes": 11_400_000}]
    documents = make.documents(
        "documents/demo",
        {"cpython-stdlib": {"documents": 9412, "bytes": 12_918_400}},
        {
            "normalize": {},
            "deduplicate-exact": {"exact duplicate": 311},
            "deduplicate-near": {"near-duplicate": 702},
            "length": {"too short": 1208, "too long": 14},
            "quality": {"mostly symbols": 96, "repeated lines": 41},
        },
        {"raw": stdlib},
        hostile,
    )
    job = {"job": {"_target_": "athanor.corpus.tasks.GenerateTasks"}, "seed": 1}
    tasks = make.run("tasks/demo", "prepare", job, {}, 3.2)
    job = {"job": {"_target_": "athanor.corpus.tokenizer.TrainTokenizer"}}
    facts = {"vocabulary_size": 4096, "bytes_per_token": {"en": 3.62, "zh": 2.87}, "round_trip": 1.0}
    tokenizer = make.run(
        "tokenizer/demo", "prepare", job, {"documents": documents, "tasks": tasks}, 8.8, files={"tokenizer.json": facts}
    )
    job = {"job": {"_target_": "athanor.corpus.shards.WriteShards"}}
    splits = {"train": {"documents": 6850, "tokens": 3_180_000, "bytes": 11_300_000}}
    splits["validation"] = {"documents": 150, "tokens": 66_000, "bytes": 240_000}
    shards = make.run(
        "shards/demo",
        "prepare",
        job,
        {"documents": documents, "tasks": tasks, "tokenizer": tokenizer},
        4.1,
        files={"shards.json": {"vocabulary_size": 4096, "languages": ["en", "zh"], "splits": splits}},
    )
    common = {
        "train/tokens_per_second": (9000, 11800, 0.03, 10),
        "train/mfu": (0.1, 0.14, 0.03, 10),
        "train/grad_norm": (3.0, 0.8, 0.2, 10),
        "train/lr": (3e-4, 3e-5, 0.0, 10),
    }
    pretrain = make.train(
        "pretrain/demo",
        "Pretraining",
        {"shards": shards},
        242.0,
        600,
        {"train/loss": (8.3, 2.05, 0.03, 5), "validation/loss": (7.9, 2.16, 0.002, 50), **common},
    )
    sft = make.train(
        "sft/demo",
        "SFT",
        {"model": pretrain, "tasks": tasks},
        96.0,
        400,
        {"train/loss": (3.4, 0.21, 0.12, 5), "validation/loss": (3.1, 0.26, 0.01, 40), **common},
    )
    reward = make.train(
        "reward/demo",
        "RewardModeling",
        {"model": sft, "tasks": tasks},
        52.0,
        200,
        {
            "train/loss": (0.75, 0.12, 0.2, 5),
            "validation/loss": (0.71, 0.16, 0.02, 20),
            "train/accuracy": (0.5, 0.96, 0.03, 5),
            "validation/accuracy": (0.5, 0.94, 0.01, 20),
            "train/margin": (0.02, 4.1, 0.15, 5),
            **common,
        },
    )
    dpo = make.train(
        "dpo/demo",
        "DPO",
        {"model": sft, "reference": sft, "tasks": tasks},
        71.0,
        200,
        {
            "train/loss": (0.69, 0.28, 0.1, 5),
            "validation/loss": (0.69, 0.33, 0.02, 20),
            "train/margin": (0.01, 2.6, 0.15, 5),
            "train/accuracy": (0.5, 0.93, 0.04, 5),
            "validation/margin": (0.01, 2.3, 0.02, 20),
            "validation/accuracy": (0.5, 0.89, 0.01, 20),
            **common,
        },
        beta=0.1,
    )
    ppo = make.train(
        "ppo/demo",
        "PPO",
        {"model": sft, "reference": sft, "reward": reward, "tasks": tasks},
        148.0,
        120,
        {
            "train/loss": (0.3, 0.1, 0.2, 2),
            "ppo/reward": (0.4, 2.1, 0.06, 1),
            "ppo/kl": (0.001, 0.82, 0.12, 1),
            "validation/reward": (0.6, 2.4, 0.02, 12),
            "validation/kl": (0.001, 0.71, 0.05, 12),
            "ppo/kl_coefficient": (0.1, 0.06, 0.01, 1),
            "ppo/entropy": (0.6, 0.2, 0.05, 1),
            **common,
        },
        kl_target=1.0,
    )
    for model in (pretrain, sft, dpo, ppo):
        name = json.loads((model / "manifest.json").read_text())["name"]
        make.evaluation(model, {"shards": shards, "tasks": tasks, "reward": reward}, SKILL[name], hostile)
    make.evaluation(reward, {"tasks": tasks})
    return {
        name.replace("/demo", ""): directory for name, directory in make.directories.items() if name[:9] != "evaluate/"
    }


if __name__ == "__main__":
    from athanor.report import write

    target = Path(sys.argv[1])
    print(write(demo(target / "runs"), target / "report.html", title="Demo"))
