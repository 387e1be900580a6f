"""The data modules on files: what is split, kept, cut, refused; and the loaders that the trainer asks for."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from athanor.batches import IGNORED
from athanor.corpus.documents import FILENAME, Document, write_documents
from athanor.corpus.shards import WriteShards
from athanor.data.base import BatchPlan
from athanor.data.chat import END, render, render_prompts
from athanor.data.instructions import InstructionData
from athanor.data.preferences import PreferenceData
from athanor.data.pretraining import PretrainingData
from athanor.data.prompts import PromptData
from athanor.errors import UserError
from athanor.progress import Progress
from athanor.runs.context import RunContext
from athanor.split import held_out
from small import TEXTS, train_tokenizer, valid

CONTEXT = 64


def plan(batch=4, **changes):
    return BatchPlan(**{"seed": 1, "max_steps": 3, "global_batch_size": batch, **changes})


def write(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


def question(i):
    return f"What is {i} + {i % 7}?" if i % 2 else f"{i}加{i % 7}等于多少？"


def instruction(i):
    return {"instruction": question(i), "output": str(i + i % 7)}


def preference(i):
    return {"prompt": question(i), "chosen": str(i + i % 7), "rejected": str(2 * i + 1)}


@pytest.fixture
def module(tokenizer_path, tmp_path):
    """A data module of a class over records, attached."""

    def make(kind, records, context=CONTEXT, batch=4, **arguments):
        files = [write(tmp_path / "records.jsonl", records)]
        if kind is PromptData:
            arguments = {"max_new_tokens": 8, "rollout_size": batch, **arguments}
        data = kind(files=files, tokenizer=tokenizer_path, **arguments)
        data.attach(plan(batch), context)
        return data

    return make


def contents(samples, tokenizer):
    """The texts of all samples, prompts and answers."""
    everything = np.arange(len(samples))
    batch = samples.batch(everything, everything, 1)
    rows = (
        batch.chosen_BT if hasattr(batch, "chosen_BT") else (batch.tokens_BT if hasattr(batch, "tokens_BT") else None)
    )
    rows = samples.encoded if rows is None else rows.tolist()
    return [tokenizer.decode(row, special=True) for row in rows]


# --- splits -----------------------------------------------------------------------------------------------------------

KINDS = [(InstructionData, instruction), (PreferenceData, preference), (PromptData, preference)]


@pytest.mark.parametrize(("kind", "record"), KINDS)
def test_no_record_crosses_the_split_when_others_are_added(module, tokenizer, kind, record):
    few = module(kind, [record(i) for i in range(0, 300, 3)], validation_fraction=0.2)
    many = module(kind, [record(i) for i in reversed(range(400))], validation_fraction=0.2)
    few_train, few_validation = contents(few.train, tokenizer), contents(few.validation, tokenizer)
    many_train, many_validation = contents(many.train, tokenizer), contents(many.validation, tokenizer)
    assert len(few_train) + len(few_validation) == 100
    assert set(few_train) < set(many_train)
    assert set(few_validation) < set(many_validation)
    assert not set(many_train) & set(many_validation)
    assert 0.12 < len(many_validation) / 400 < 0.28


def test_answers_to_one_prompt_fall_on_one_side(module, tokenizer):
    records = [{"prompt": question(i), "chosen": f"c{k}", "rejected": f"r{k}"} for i in range(60) for k in range(3)]
    data = module(PreferenceData, records, validation_fraction=0.3)
    sides = [{text.split("<|assistant|>")[0] for text in contents(s, tokenizer)} for s in (data.train, data.validation)]
    assert not sides[0] & sides[1]
    assert len(data.train) % 3 == len(data.validation) % 3 == 0 < len(data.validation)


def test_the_three_modules_hold_out_the_same_prompts(module, tokenizer):
    sides = []
    for kind, record in KINDS:
        data = module(kind, [record(i) for i in range(100)], validation_fraction=0.3)
        sides.append({text.split("<|assistant|>")[0] for text in contents(data.validation, tokenizer)})
    assert sides[0] == sides[1] == sides[2]


def test_held_out_takes_its_share():
    share = np.mean([held_out(str(i), 0.1) for i in range(5000)])
    assert share == pytest.approx(0.1, abs=0.017)  # 4 standard errors
    assert not any(held_out(str(i), 0.0) for i in range(100))
    assert all(held_out(str(i), 1.0) for i in range(100))


def test_validation_files_are_all_of_validation(module, tokenizer, tmp_path):
    own = write(tmp_path / "own.jsonl", [instruction(i) for i in range(500, 530)])
    data = module(InstructionData, [instruction(i) for i in range(50)], validation_files=[own])
    assert (len(data.train), len(data.validation)) == (50, 30)
    assert "What is 501" in contents(data.validation, tokenizer)[1]
    data = module(InstructionData, [instruction(1)], validation_files=[own], validation_samples=7)
    assert contents(data.validation, tokenizer) == [*contents(data.validation, tokenizer)[:7]]
    assert len(data.validation) == 7


def test_no_validation_at_all(module):
    data = module(InstructionData, [instruction(i) for i in range(9)], validation_fraction=0.0)
    assert len(data.validation) == 0
    assert data.val_dataloader() == []


# --- what becomes of a record -----------------------------------------------------------------------------------------


def test_instructions_teach_the_answer_only(module, tokenizer):
    data = module(InstructionData, [instruction(i) for i in range(30)], validation_fraction=0.0)
    batch = data.train.batch(np.arange(30), np.arange(30), 77)
    assert batch.normalizer == 77
    for i, (tokens, labels) in enumerate(valid(batch.tokens_BT, batch.labels_BT)):
        answer = [*tokenizer.encode(instruction(i)["output"]), tokenizer.special[END]]
        assert [x for x in labels if x != IGNORED] == answer
        assert [*tokens[1:], tokenizer.special[END]] == tokens[1 : 1 - len(answer)] + answer
    assert data.train.prompts(3) == render_prompts(
        [[{"role": "user", "content": question(i)}] for i in range(3)], tokenizer
    )


def test_preferences_teach_the_last_answer_only(module, tokenizer):
    records = [
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "earlier"},
                    {"role": "user", "content": question(i)}], "chosen": f"yes {i}", "rejected": "no"}
        for i in range(8)
    ]  # fmt: skip
    data = module(PreferenceData, records, validation_fraction=0.0)
    batch = data.train.batch(np.arange(8), np.arange(8), 8)
    for i in range(8):
        for tokens, labels, length, answer in (
            (batch.chosen_BT[i], batch.chosen_labels_BT[i], batch.chosen_lengths_B[i], f"yes {i}"),
            (batch.rejected_BT[i], batch.rejected_labels_BT[i], batch.rejected_lengths_B[i], "no"),
        ):
            expected = [*tokenizer.encode(answer), tokenizer.special[END]]
            assert labels[labels != IGNORED].tolist() == expected
            end = int(length)
            assert tokens[end - len(expected) : end].tolist() == expected
            where = (labels != IGNORED).nonzero().flatten()
            assert where.tolist() == list(range(end - 1 - len(expected), end - 1))
            assert set(tokens[end:].tolist()) <= {tokenizer.pad_id}


def test_prompts_are_what_is_to_be_answered(module, tokenizer):
    data = module(PromptData, [preference(i) for i in range(8)], validation_fraction=0.0)
    expected = render_prompts([[{"role": "user", "content": question(i)}] for i in range(8)], tokenizer)
    assert data.train.encoded == expected
    batch = data.train.batch(np.array([5, 2]), np.array([40, 41]), 0)
    assert batch.lengths_B.tolist() == [len(expected[5]), len(expected[2])]
    assert batch.samples_B.tolist() == [40, 41]
    assert batch.longest == max(map(len, expected))


def long_one(i):
    return {"instruction": "much " * 40 if i == 3 else question(i), "output": "answer " * (40 if i == 5 else 1)}


@pytest.mark.parametrize("kind", [InstructionData, PreferenceData, PromptData])
def test_too_long(module, kind):
    records = [{**long_one(i), "chosen": long_one(i)["output"], "rejected": "no"} for i in range(8)]
    with pytest.raises(UserError, match=r"of 8 sequences are longer .* records\.jsonl:\d, has .* data.too_long=drop"):
        module(kind, records, validation_fraction=0.0)
    data = module(kind, records, validation_fraction=0.0, too_long="drop")
    assert len(data.train) == (7 if kind is PromptData else 6)


def test_what_is_kept_fits_the_context_to_the_token(module, tokenizer):
    records = [instruction(i) for i in range(40)]
    turns = [[{"role": "user", "content": question(i)}, {"role": "assistant", "content": instruction(i)["output"]}]
             for i in range(40)]  # fmt: skip
    whole = [len(ids) for ids, _ in render(turns, tokenizer)]
    context = sorted(whole)[20] - 1  # inputs are one shorter than sequences
    data = module(InstructionData, records, context=context, validation_fraction=0.0, too_long="drop")
    assert len(data.train) == sum(n - 1 <= context for n in whole) < 40
    assert data.train.batch(np.arange(len(data.train)), np.arange(len(data.train)), 0).tokens_BT.shape[1] == context
    pairs = module(PreferenceData, [preference(i) for i in range(40)], context=context, too_long="drop")
    assert pairs.train.batch(np.arange(len(pairs.train)), np.arange(len(pairs.train)), 0).chosen_BT.shape[1] <= context
    room = max(map(len, pairs.train.prompts(40)))
    prompts = module(PromptData, [preference(i) for i in range(40)], context=room + 8, too_long="drop")
    assert prompts.train.longest <= room


def test_truncated_answers_keep_their_beginning(module, tokenizer):
    data = module(InstructionData, [long_one(i) for i in range(8)], validation_fraction=0.0, too_long="truncate")
    assert len(data.train) == 7  # of the one with a long question no answer is left
    batch = data.train.batch(np.arange(7), np.arange(7), 0)
    assert batch.tokens_BT.shape[1] == CONTEXT
    row = int((batch.labels_BT[:, -1] != IGNORED).nonzero())
    labels = batch.labels_BT[row]
    answer = tokenizer.encode(long_one(5)["output"])
    assert labels[labels != IGNORED].tolist() == answer[: int((labels != IGNORED).sum())]
    assert data.train.weights(np.array([row])) == (labels != IGNORED).sum()


def test_max_length_is_a_shorter_context(module):
    records = [long_one(i) for i in range(8)]
    kept = [
        len(module(InstructionData, records, validation_fraction=0.0, too_long="drop", **limit).train)
        for limit in ({"max_length": 40}, {"context": 40}, {"max_length": 10_000, "context": 40}, {"context": 1000})
    ]
    assert kept == [6, 6, 6, 8]


def test_half_a_judgement_is_refused(module):
    with pytest.raises(UserError, match="too_long=truncate would judge answers by their cut-off half"):
        module(PreferenceData, [preference(1)], too_long="truncate")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "record"), KINDS)
def test_a_bad_record_stops_the_run_or_is_left_out(module, kind, record, caplog):
    records = [
        record(1),
        {"text": "no question"},
        record(2),
        {"instruction": 3, "chosen": None, "rejected": "x"},
        record(4),
    ]
    with pytest.raises(UserError, match=r"^records\.jsonl:2 .*set data\.invalid=drop to leave such records out\.$"):
        module(kind, records, validation_fraction=0.0)
    data = module(kind, records, validation_fraction=0.0, invalid="drop", batch=1)
    assert len(data.train) >= 3
    assert "records.jsonl:2 has the fields ['text']" in caplog.text
    assert f"{5 - len(data.train)} of 5 records left out" in caplog.text


def test_nothing_to_train_on(module):
    with pytest.raises(UserError, match="no samples"):
        module(InstructionData, [instruction(1)], validation_fraction=1.0)


def test_half_a_surrogate_pair_is_refused(tokenizer_path, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"question": "\\ud83d", "answer": "x"}\n')
    with pytest.raises(UserError, match="surrogate"):
        InstructionData([str(path)], tokenizer_path).attach(plan(), CONTEXT)


@pytest.mark.parametrize(("size", "batch", "above"), [(6, 4, 8), (4, 8, 8), (9, 3, None), (0, 4, 4), (-1, 4, 4)])
def test_rollouts_that_do_not_divide(tokenizer_path, tmp_path, size, batch, above):
    files = [write(tmp_path / "r.jsonl", [preference(i) for i in range(9)])]
    if above:
        with pytest.raises(UserError, match=rf"rollout_size={size} must be a multiple .*nearest above: {above}\.$"):
            PromptData(files, tokenizer_path, max_new_tokens=8, rollout_size=size).attach(plan(batch), CONTEXT)
    data = PromptData(files, tokenizer_path, max_new_tokens=8, rollout_size=above or size, epochs_per_rollout=3)
    data.attach(plan(batch), CONTEXT)
    assert data.steps_per_rollout == 3 * (above or size) // batch
    with pytest.raises(UserError, match="does not divide into 2 devices"):
        data.attach(plan(7, world_size=2), CONTEXT)
    with pytest.raises(UserError, match="epochs_per_rollout=0 must be at least 1"):
        PromptData(files, tokenizer_path, max_new_tokens=8, rollout_size=batch * 2, epochs_per_rollout=0).attach(
            plan(batch), CONTEXT
        )


# --- loaders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_goes_on_where_the_trainer_stands(module, workers):
    data = module(InstructionData, [instruction(i) for i in range(30)], validation_fraction=0.2)
    data.plan = plan(8, micro_batch_size=4, num_workers=workers)
    data.trainer = SimpleNamespace(global_step=0)
    whole = [valid(b.tokens_BT, b.labels_BT) for b in data.train_dataloader()]
    assert len(whole) == 6
    data.trainer = SimpleNamespace(global_step=2)
    loader = data.train_dataloader()
    assert [valid(b.tokens_BT, b.labels_BT) for b in loader] == whole[4:]
    assert len(loader) == 6
    seen = sum(len(b.tokens_BT) for b in data.val_dataloader())
    assert seen == len(data.validation) > 0


# --- shards -----------------------------------------------------------------------------------------------------------


def finished(directory, name):
    """Gives the folder of a job the manifest of a finished run."""
    outputs = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in directory.iterdir()
    }
    manifest = {"format": 1, "name": name, "kind": "prepare", "fingerprint": directory.name, "status": "finished",
                "inputs": {}, "outputs": outputs, "overrides": [], "started": 0.0}  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return str(directory)


def run_folder(root, name):
    directory = root / name / ("0123456789abcdef" if "tokens" not in name else "fedcba9876543210")
    directory.mkdir(parents=True)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(directory of a tokenizer run, directory of a shards run)."""
    root = tmp_path_factory.mktemp("runs")
    documents = run_folder(root, "documents/small")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(TEXTS, rng.integers(1, 4))) + f" {i}" for i in range(80)]
    write_documents(documents / FILENAME, [Document(str(i), text, "t", "en") for i, text in enumerate(texts)])
    words = run_folder(root, "tokenizer/small")
    train_tokenizer(words)
    tokens = run_folder(root, "tokens/small")
    job = WriteShards(finished(documents, "documents/small"), finished(words, "tokenizer/small"), 0.2)
    job.run(RunContext(tokens, SimpleNamespace(config={}), Progress(quiet=True)))
    return str(words), finished(tokens, "tokens/small"), texts


def test_pretraining_rows_hold_the_documents_in_order(corpus):
    words, tokens, texts = corpus
    data = PretrainingData(tokens, words, sequence_length=32)
    data.attach(plan(4), CONTEXT)
    tokenizer = data.tokenizer
    everything = data.train.batch(np.arange(len(data.train)), np.arange(len(data.train)), 0)
    stream = everything.tokens_BT.flatten().tolist()
    documents = tokenizer.decode([t if t != tokenizer.eos_id else tokenizer.encode("\x00")[0] for t in stream]).split(
        "\x00"
    )
    kept = [text for text in texts if text in documents[:-1]]
    assert documents[:-1] == kept
    assert 40 < len(kept) < 80
    starts = everything.tokens_BT == tokenizer.bos_id
    assert (everything.positions_BT[starts] == 0).all()
    assert (everything.labels_BT != tokenizer.bos_id).all(), "no document is predicted from the one before"
    assert (everything.labels_BT[everything.tokens_BT == tokenizer.eos_id] == IGNORED).all()
    assert len(data.validation) > 0
    assert data.typical_length == 32


def test_rows_longer_than_the_context_or_the_corpus(corpus):
    words, tokens, _ = corpus
    with pytest.raises(UserError, match="sequence_length=65 exceeds the model's context of 64"):
        PretrainingData(tokens, words, sequence_length=65).check(SimpleNamespace(context=64, vocabulary_size=10**6))
    with pytest.raises(UserError, match=r"\d+ training tokens, fewer than one row of 100000"):
        PretrainingData(tokens, words, sequence_length=100_000).attach(plan(), 100_000)
