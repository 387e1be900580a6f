"""Proximal policy optimisation of a language model against a reward model.

Schulman et al. 2017 (arXiv:1707.06347) in the form of Ziegler et al. 2019 (arXiv:1909.08593) and Ouyang et al. 2022
(arXiv:2203.02155): the reward of a token is -coefficient * KL to the reference, and the last token adds the reward
model's score. With `kl_in: loss` the price of distance is instead added to the loss of each token, summed over the
vocabulary rather than estimated from the token that was drawn. That has less noise but is another objective: it is not
whitened with the advantages, so the coefficient has another scale, and a token does not pay for where it leads.

Shapes: R responses of a rollout (over all ranks), B rows of a micro-batch, T columns of prompt and response, padded on
the right. Position t predicts token t + 1; whatever belongs to a response token stands at the position that predicts
it.

A rollout is collected inside the training step that begins it, gathered on every rank, and kept in the checkpoint:
minibatches are then the same for every world size, and a run interrupted between two rollouts' beginnings resumes
exactly. (One rollout as one Lightning epoch would tie the rollout to the loader, which prefetches: the next one would
be sampled a step early.)
"""

import math
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from athanor.algorithms.base import Algorithm, response_logps
from athanor.batches import IGNORED, PromptBatch
from athanor.data.order import order
from athanor.functional import by_blocks, gae, masked_mean, masked_sum, masked_whiten, up_to_last_label
from athanor.models import require_language_model, require_reward_model
from athanor.models.heads import response_labels
from athanor.rollout import Responses, sample, uniforms


def clipped_policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """-min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A) of each token, ratio = exp(logps - old_logps) (eq. 7)."""
    ratio = torch.exp(logps - old_logps)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """max((V - R)^2, (clamp(V, old - clip, old + clip) - R)^2) / 2 of each token; (V - R)^2 / 2 without a clip."""
    if clip is None:
        return 0.5 * (values - returns) ** 2
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def token_rewards(kl_RT: Tensor, scores_R: Tensor, mask_RT: Tensor, *, coefficient: Tensor | float) -> Tensor:
    """-coefficient * KL of each response token, and the response's score at its last one; 0 outside the mask."""
    last_RT = mask_RT & (mask_RT.flip(-1).cumsum(-1).flip(-1) == 1)
    rewards_RT = -coefficient * kl_RT + torch.where(last_RT, scores_R[:, None], 0.0)
    return torch.where(mask_RT, rewards_RT, 0.0)


def adapted_kl_coefficient(coefficient: Tensor, kl: Tensor, *, target: float, horizon: float) -> Tensor:
    """The proportional controller of Ziegler et al. 2019 (section 2.2): coefficient * (1 + clamp(kl/target - 1, +-0.2)
    * horizon).

    Args:
        kl: mean KL of a response to the reference in the last rollout, nats.
        horizon: gain of one rollout, in (0, 1].
    """
    return coefficient * (1 + (kl / target - 1).clamp(-0.2, 0.2) * horizon)


class Rollout(NamedTuple):
    tokens_RT: Tensor
    labels_RT: Tensor  # the response token that position t predicts, else IGNORED
    logps_RT: Tensor  # under the policy that sampled
    values_RT: Tensor
    advantages_RT: Tensor
    returns_RT: Tensor


class PPO(Algorithm):
    """Trains the policy `model` and the critic `value` against `reward`, near `reference`.

    Args:
        reference: the frozen start of the policy, from its own run.
        reward: frozen; its method `reward(tokens_BT, lengths_B, starts_B)` gives float32 [B].
        value: critic, usually the reward model's own weights (Ouyang et al. 2022, appendix C.4).
        tokenizer: directory of the tokenizer run (for <|end|> and padding).
        max_new_tokens, temperature: of the sampled responses.
        kl_in: where a nat is paid: in the "reward", estimated from the drawn tokens, or in the "loss", exactly.
        kl_coefficient: price of a nat; the start value when `kl_control` is "adaptive".
        kl_target: nats a response may lie from the reference, held by the adaptive controller.
        kl_bound: the most nats that the mean response of a rollout should ever lie from the reference; while it lies
            beyond, each rollout raises the coefficient by half, whatever `kl_control` says. None: no bound.
        value_clip: how far a rollout may move a value, in units of the score. None: as far as the returns say, which a
            critic that starts from nothing needs.
        value_lr_factor: the critic's learning rate over the policy's. Their gradients are clipped apart.
        unfinished_penalty: subtracted from the score of a response cut off without <|end|>.
        reward_clip: scores are cut off at +- this, before the penalty: a likelihood has a long tail of bad answers,
            which would otherwise set the scale of all advantages. None: as they are.
        whiten_rewards: scale a rollout's token rewards to unit variance, keeping their mean.
    """

    reference: nn.Module
    reward: nn.Module
    kl_coefficient: Tensor

    def __init__(
        self,
        model,
        optimizer,
        schedule,
        reference: nn.Module,
        reward: nn.Module,
        value: nn.Module,
        tokenizer: str,
        max_new_tokens: int,
        kl_coefficient: float,
        kl_in: Literal["reward", "loss"] = "reward",
        kl_control: Literal["fixed", "adaptive"] = "adaptive",
        kl_target: float = 1.0,
        kl_bound: float | None = None,
        kl_horizon: float = 0.5,
        temperature: float = 1.0,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_lr_factor: float = 1.0,
        value_weight: float = 0.5,
        gamma: float = 1.0,
        lam: float = 0.95,
        reward_clip: float | None = None,
        whiten_rewards: bool = False,
        unfinished_penalty: float = 1.0,
    ):
        super().__init__(model, optimizer, schedule)
        require_language_model(reference, "algorithm.reference")
        require_reward_model(reward, "algorithm.reward")
        require_reward_model(value, "algorithm.value")
        if max_new_tokens < 1:
            raise ValueError(f"algorithm.max_new_tokens={max_new_tokens} must be at least 1")
        if temperature <= 0:
            raise ValueError(f"algorithm.temperature={temperature} must be positive: PPO learns from samples")
        self.add_frozen("reference", reference)
        self.add_frozen("reward", reward)
        self.value = value.as_critic().train()  # type: ignore[operator]
        self.tokenizer = tokenizer
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.kl_in = kl_in
        self.kl_control, self.kl_target, self.kl_horizon = kl_control, kl_target, kl_horizon
        self.kl_bound = math.inf if kl_bound is None else kl_bound
        self.clip, self.value_clip, self.value_weight = clip, value_clip, value_weight
        self.value_lr_factor = value_lr_factor
        self.gamma, self.lam = gamma, lam
        if reward_clip is not None and reward_clip <= 0:
            raise ValueError(f"algorithm.reward_clip={reward_clip} must be positive, or null for none")
        self.reward_clip = math.inf if reward_clip is None else reward_clip
        self.whiten_rewards, self.unfinished_penalty = whiten_rewards, unfinished_penalty
        self.register_buffer("kl_coefficient", torch.tensor(float(kl_coefficient)))
        self.rollout: Rollout | None = None

    def parts(self) -> list[tuple[str, float]]:
        return [("model.", 1.0), ("value.", self.value_lr_factor)]

    @cached_property
    def text(self) -> Any:
        from athanor.corpus.tokenizer import Tokenizer

        return Tokenizer(self.tokenizer)

    @cached_property
    def stop_id(self) -> int:
        from athanor.data.chat import END

        return self.text.special[END]

    @property
    def pad_id(self) -> int:
        return self.text.pad_id

    # --- collecting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, batch: PromptBatch) -> tuple[Rollout, dict[str, Tensor]]:
        """Samples a response to each prompt and scores it; the rollout of all ranks together."""
        noise_BN = uniforms([(self.seed, 0x9019, int(place)) for place in batch.samples_B], self.max_new_tokens)
        with self.whole(self.model) as model:
            responses = sample(
                model, batch.tokens_BP, batch.lengths_B, max_new_tokens=self.max_new_tokens, stop_id=self.stop_id,
                pad_id=self.pad_id, temperature=self.temperature, uniforms_BN=noise_BN,
            )  # fmt: skip
        tokens_RT, labels_RT, lengths_R = joined(batch, responses, self.pad_id)
        self.model.eval()
        logps_RT = response_logps(self.model, tokens_RT, labels_RT, temperature=self.temperature)
        self.model.train()
        self.value.eval()
        values_RT = self.value(tokens_RT)
        self.value.train()
        ref_RT = response_logps(self.reference, tokens_RT, labels_RT, temperature=self.temperature)
        scores_R = self.reward.reward(tokens_RT, lengths_R, batch.lengths_B)  # type: ignore[operator]
        scores_R = scores_R.clamp(-self.reward_clip, self.reward_clip)
        unfinished_R = ~responses.stopped_B
        scores_R = scores_R - self.unfinished_penalty * unfinished_R
        width = int(batch.longest) + self.max_new_tokens
        tokens_RT, labels_RT = self.everyone(tokens_RT, width, self.pad_id), self.everyone(labels_RT, width, IGNORED)
        logps_RT, values_RT, ref_RT = (self.everyone(x, width, 0.0) for x in (logps_RT, values_RT, ref_RT))
        scores_R, unfinished_R = (self.everyone(x[:, None], 1, 0.0)[:, 0] for x in (scores_R, unfinished_R.float()))

        mask_RT = labels_RT != IGNORED
        kl_RT = logps_RT - ref_RT
        price = self.kl_coefficient if self.kl_in == "reward" else 0.0
        rewards_RT = token_rewards(kl_RT, scores_R, mask_RT, coefficient=price)
        if self.whiten_rewards:
            rewards_RT = masked_whiten(rewards_RT, mask_RT, shift_mean=False)
        advantages_RT, returns_RT = gae(rewards_RT, values_RT, mask_RT, gamma=self.gamma, lam=self.lam)
        advantages_RT = masked_whiten(advantages_RT, mask_RT)
        metrics = {
            "reward": scores_R.mean(),
            "kl": masked_sum(kl_RT, mask_RT) / len(scores_R),
            "kl_coefficient": self.kl_coefficient.clone(),
            "response_tokens": mask_RT.sum() / len(scores_R),
            "unfinished": unfinished_R.mean(),
            "value_error": masked_mean((values_RT - returns_RT) ** 2, mask_RT),
        }
        return Rollout(tokens_RT, labels_RT, logps_RT, values_RT, advantages_RT, returns_RT), metrics

    def everyone(self, x_BT: Tensor, width: int, fill: float) -> Tensor:
        """The rows of all ranks in rank order, padded on the right to a width that all ranks share."""
        x_BT = nn.functional.pad(x_BT, (0, width - x_BT.shape[1]), value=fill)
        if self.trainer.world_size == 1:
            return x_BT
        gathered = self.all_gather(x_BT)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    # --- learning ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        if len(batch.lengths_B):
            self.rollout, metrics = self.collect(batch)
            if self.kl_control == "adaptive":
                self.kl_coefficient = adapted_kl_coefficient(
                    self.kl_coefficient, metrics["kl"], target=self.kl_target, horizon=self.kl_horizon
                )
            if metrics["kl"] > self.kl_bound:
                self.kl_coefficient = 1.5 * self.kl_coefficient
            # at the step that begins here, so that a run resumed before it writes this line once
            step = self.trainer.global_step + 1
            self.report({f"ppo/{name}": float(value) for name, value in metrics.items()}, step)
        assert self.rollout is not None, "a run begins with a rollout"
        rows, normalizer = self.minibatch(batch_idx)
        # columns up to the last response
        used = int((self.rollout.labels_RT[rows] != IGNORED).any(0).nonzero().max()) + 1
        tokens_BT, labels_BT, old_logps_BT, old_values_BT, advantages_BT, returns_BT = (
            x[rows, :used] for x in self.rollout
        )
        mask_BT = labels_BT != IGNORED
        logps_BT, kl_sum = self.logps_and_kl(tokens_BT, labels_BT)
        values_BT = self.value(tokens_BT, valid_BT=up_to_last_label(labels_BT))
        policy = masked_sum(clipped_policy_loss(logps_BT, old_logps_BT, advantages_BT, clip=self.clip), mask_BT)
        value = masked_sum(clipped_value_loss(values_BT, old_values_BT, returns_BT, clip=self.value_clip), mask_BT)
        clipped = ((logps_BT - old_logps_BT).exp() - 1).abs() > self.clip
        return self.loss(
            policy + self.value_weight * value + kl_sum, normalizer,
            policy_loss=policy, value_loss=value, clip_fraction=masked_sum(clipped.float(), mask_BT),
            update_kl=masked_sum(old_logps_BT - logps_BT, mask_BT),
        )  # fmt: skip

    def logps_and_kl(self, tokens_BT: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor | float]:
        """log p(label), float32 [B, T], and what distance from the reference costs in the loss, summed over tokens."""
        if self.kl_in == "reward":
            return response_logps(self.model, tokens_BT, labels_BT, temperature=self.temperature), 0.0
        mask_BT, valid_BT = labels_BT != IGNORED, up_to_last_label(labels_BT)

        def hidden_states(model: nn.Module) -> Tensor:  # [N, D]
            return model.hidden_states(tokens_BT, valid_BT=valid_BT)[mask_BT]  # type: ignore[operator]

        def log_softmax(model: nn.Module, hidden_ND: Tensor) -> Tensor:  # [N, V]
            return (model.logits(hidden_ND).float() / self.temperature).log_softmax(-1)  # type: ignore[operator]

        def compared(ours_ND: Tensor, theirs_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
            ours_NV = log_softmax(self.model, ours_ND)
            with torch.no_grad():
                theirs_NV = log_softmax(self.reference, theirs_ND)
            return ours_NV.gather(1, labels_N[:, None]).squeeze(1), (ours_NV.exp() * (ours_NV - theirs_NV)).sum()

        with torch.no_grad():
            theirs_ND = hidden_states(self.reference)
        vocabulary: int = self.model.vocabulary_size  # type: ignore[assignment]
        found = by_blocks(compared, vocabulary, hidden_states(self.model), theirs_ND, labels_BT[mask_BT])
        logps_N, kl = torch.cat([logps for logps, _ in found]), torch.stack([kl for _, kl in found]).sum()
        logps_BT = torch.zeros(labels_BT.shape, device=logps_N.device).masked_scatter(mask_BT, logps_N)
        return logps_BT, self.kl_coefficient * kl

    def tokens(self, batch: PromptBatch) -> int:
        assert self.rollout is not None
        return self.trainer.datamodule.plan.micro * self.rollout.tokens_RT.shape[1]  # type: ignore[attr-defined]

    def minibatch(self, micro_batch: int) -> tuple[Tensor, Tensor]:
        """This rank's rows of the rollout for a micro-batch, and the response tokens of its global minibatch."""
        assert self.rollout is not None
        plan = self.trainer.datamodule.plan  # type: ignore[attr-defined]
        step, part = divmod(micro_batch, plan.accumulation)
        size, count = plan.global_batch_size, len(self.rollout.tokens_RT)
        pass_, within = divmod(step, count // size)
        rows = order(plan.seed + 1, count, pass_ * count + within * size, pass_ * count + (within + 1) * size)
        mine = plan.rank * plan.per_rank + part * plan.micro
        device = self.rollout.labels_RT.device
        normalizer = (self.rollout.labels_RT[torch.from_numpy(rows).to(device)] != IGNORED).sum()
        return torch.from_numpy(rows[mine : mine + plan.micro]).to(device), normalizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.rollout is not None:
            checkpoint["rollout"] = self.rollout._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "rollout" in checkpoint:
            self.rollout = Rollout(**{name: x.to(self.device) for name, x in checkpoint["rollout"].items()})

    # --- validation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Greedy answers to held-out prompts: their score, and their distance to the reference in nats a response."""
        with self.whole(self.model) as model:
            responses = sample(
                model, batch.tokens_BP, batch.lengths_B, max_new_tokens=self.max_new_tokens, stop_id=self.stop_id,
                pad_id=self.pad_id,
            )  # fmt: skip
        tokens_BT, labels_BT, lengths_B = joined(batch, responses, self.pad_id)
        scores_B = self.reward.reward(tokens_BT, lengths_B, batch.lengths_B)  # type: ignore[operator]
        logps_BT = response_logps(self.model, tokens_BT, labels_BT)
        ref_BT = response_logps(self.reference, tokens_BT, labels_BT)
        self.validated(lengths_B.new_tensor(len(lengths_B)), reward=scores_B.sum(), kl=(logps_BT - ref_BT).sum())


def joined(batch: PromptBatch, responses: Responses, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt and response in one row from column 0: tokens_BT, labels_BT of the response, lengths_B."""
    new = responses.tokens_BN.shape[1]
    columns = torch.arange(batch.tokens_BP.shape[1] + new, device=batch.tokens_BP.device)[None]
    prompt_B1, response_B1 = batch.lengths_B[:, None], responses.lengths_B[:, None]
    both = torch.cat((batch.tokens_BP, responses.tokens_BN), dim=1)
    source = (columns + (batch.tokens_BP.shape[1] - prompt_B1)).clamp(max=both.shape[1] - 1)
    tokens_BT = torch.where(columns < prompt_B1 + response_B1, both.gather(1, source), pad_id)
    lengths_B = (prompt_B1 + response_B1).squeeze(1)
    return tokens_BT, response_labels(tokens_BT, batch.lengths_B, lengths_B), lengths_B
