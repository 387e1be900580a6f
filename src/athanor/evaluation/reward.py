"""A policy's answers under a learned reward, and how far the policy has gone from a reference on the way.

    KL of a token = sum over the vocabulary of p log(p / q),  p the policy, q the reference, after the same tokens

exact at each position of the policy's own answers (no estimate from sampled tokens). The mean over all answer tokens,
<|end|> included, is `kl_to_reference`; the mean of the answers' sums `kl_of_response`.
"""

import torch

from athanor.data.chat import render_prompts
from athanor.data.formats import read_records, to_prompt
from athanor.evaluation.exact_match import spread
from athanor.evaluation.measurement import Measurement, Outcome, described
from athanor.evaluation.subject import Subject, batched, rewards
from athanor.models import require_language_model, require_reward_model
from athanor.train import load_model


class Reward:
    """Measures the mean `reward`, and with a reference the KL to it.

    Args:
        files: JSON Lines with prompts.
        reward: directory of the reward model's run.
        reference: directory of the run the policy started from; None to leave the KL out.
        max_new_tokens: an answer is cut off after so many.
        questions: at most so many, evenly spread over the files; None for all.
        temperature: 0 for greedy answers; 1 for samples, on which `kl_of_response` estimates KL(policy || reference).
        seed: of the samples.
    """

    def __init__(
        self,
        files: list[str],
        reward: str,
        reference: str | None = None,
        max_new_tokens: int = 32,
        questions: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ):
        self.files, self.reward, self.reference = files, reward, reference
        self.max_new_tokens, self.questions, self.temperature, self.seed = max_new_tokens, questions, temperature, seed

    def __call__(self, subject: Subject) -> Outcome:
        subject.require_language_model("the mean reward of its answers")
        subject.require_tokenizer_of(self.reward, "the reward model")
        records = spread(list(read_records(self.files)), self.questions)
        prompts = render_prompts([to_prompt(record, where) for where, record in records], subject.tokenizer)
        keep = subject.fitting([len(p) for p in prompts], [where for where, _ in records], self.max_new_tokens)
        records, prompts = [records[i] for i in keep], [prompts[i] for i in keep]
        answers = subject.answers(
            prompts, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed
        )
        rows = subject.conversations(prompts, answers, self.max_new_tokens)
        judge, _ = load_model(self.reward, subject.device)
        require_reward_model(judge, "the judge")
        items = described(records)
        scores = rewards(judge, [tokens for tokens, _ in rows], [start for _, start in rows], subject)
        found = [Measurement("reward", items, scores, "reward", "higher")]
        if self.reference is not None:
            subject.require_tokenizer_of(self.reference, "the reference")
            reference, _ = load_model(self.reference, subject.device)
            require_language_model(reference, "the reference")
            sums, counts = divergence(subject, reference, rows)
            found += [
                Measurement("kl_to_reference", items, sums, "nats/token", "none", counts),
                Measurement("kl_of_response", items, sums, "nats/response", "none"),
            ]
        return Outcome(found)


@torch.no_grad()
def divergence(
    subject: Subject, reference: torch.nn.Module, rows: list[tuple[list[int], int]]
) -> tuple[list[float], list[float]]:
    """(nats summed over the answer's tokens, number of these) of each (tokens, length of the prompt)."""
    sums, counts = [0.0] * len(rows), [0.0] * len(rows)
    width = 3 * subject.tokenizer.vocabulary_size
    tokens = [row for row, _ in rows]
    for part, tokens_BT, lengths_B in batched(tokens, subject.tokenizer.pad_id, subject.device, width, subject.report):
        prompts_B1 = torch.tensor([[rows[i][1]] for i in part], device=tokens_BT.device)
        columns = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        mask_BT = (columns >= prompts_B1 - 1) & (columns < lengths_B[:, None] - 1)
        logp_NV = subject.model(tokens_BT)[mask_BT].float().log_softmax(-1)
        logq_NV = reference(tokens_BT)[mask_BT].float().log_softmax(-1)
        kl_N = (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)
        kl_BT = torch.zeros(mask_BT.shape, device=kl_N.device).masked_scatter(mask_BT, kl_N)
        for i, total, count in zip(part, kl_BT.double().sum(1).tolist(), mask_BT.sum(1).tolist()):
            sums[i], counts[i] = total, float(count)
    return sums, counts
