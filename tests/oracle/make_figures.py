"""Makes figures.json, what transformers and TRL give for `inputs.py`. Run it in two environments of their own:

    pip install torch==2.13.0 transformers==5.23.0 trl==1.16.0 && python tests/oracle/make_figures.py models
    pip install torch==2.13.0 transformers==4.46.3 trl==0.11.4 rich && python tests/oracle/make_figures.py ppo

The second is the last TRL whose PPO is made of functions that can be called on their own; TRL 1.16 has no PPO at all.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import inputs
import numpy as np
import torch

os.environ |= {"WANDB_DISABLED": "true", "HF_HUB_OFFLINE": "1"}
FIGURES = Path(__file__).with_name("figures.json")


def llama(name: str, who: str = "policy"):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = inputs.SHAPES[name]
    model = LlamaForCausalLM(LlamaConfig(**configuration(shape)))
    fill(model, inputs.llama_weights(shape, inputs.SEED[who]))
    return model


def configuration(shape: dict) -> dict:
    return {
        "vocab_size": shape["vocabulary_size"], "hidden_size": shape["width"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"],
        "intermediate_size": shape["hidden"], "max_position_embeddings": shape["context"],
        "rope_parameters": {"rope_type": "default", "rope_theta": shape["rope_theta"]},
        "rms_norm_eps": shape["norm_eps"], "tie_word_embeddings": shape["tie_embeddings"], "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "pad_token_id": inputs.PAD,
    }  # fmt: skip


def fill(model, weights: dict) -> None:
    """Loads the weights; every parameter must be named, but for a tied head."""
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= ({"lm_head.weight"} if model.config.tie_word_embeddings else set()), missing
    model.tie_weights()


def forward_figures(name: str) -> dict:
    shape, model = inputs.SHAPES[name], llama(name).eval()
    tokens = torch.from_numpy(inputs.tokens(shape, 2, len(inputs.POSITIONS)))
    whole = torch.ones_like(tokens)
    logits = model(tokens).logits
    spread = model(tokens, attention_mask=whole, position_ids=torch.tensor([inputs.POSITIONS] * 2)).logits
    documents = np.array(inputs.DOCUMENTS)
    alone = torch.cat([model(tokens[:, documents == d]).logits for d in np.unique(documents)], dim=1)
    labels = tokens.clone()
    labels[0, :4] = labels[1, 7:] = -100
    loss = model(tokens, labels=labels).loss
    loss.backward()
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    return {
        "logits": numbers(logits), "logits_at_positions": numbers(spread), "logits_of_documents": numbers(alone),
        "loss": loss.item(), "gradient_norms": norms,
    }  # fmt: skip


def numbers(tensor) -> list:
    return [[float(f"{x:.8g}") for x in row] for row in tensor.detach().flatten(0, -2).tolist()]


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": inputs.PAD, "<eos>": 2} | {f"t{i}": i for i in range(23) if i not in (inputs.PAD, 2)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def train(kind: str, model, rows: list[dict], **settings) -> dict:
    """Losses of `STEPS` steps of plain SGD by TRL's own trainer, its metrics, and how far each weight has moved."""
    import trl
    from datasets import Dataset

    losses: list[float] = []
    base = getattr(trl, f"{kind}Trainer")

    class Recorder(base):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset  # the rows are token ids already

        def training_step(self, *args, **kwargs):
            losses.append(super().training_step(*args, **kwargs).item())
            return torch.tensor(losses[-1])

    extra = {key: settings.pop(key) for key in ("ref_model",) if key in settings}
    with tempfile.TemporaryDirectory() as folder:
        arguments = getattr(trl, f"{kind}Config")(
            folder, max_steps=inputs.STEPS, learning_rate=inputs.LEARNING_RATE, lr_scheduler_type="constant",
            optim="sgd", max_grad_norm=0.0, report_to=[], logging_steps=1, save_strategy="no", use_cpu=True,
            bf16=False, gradient_checkpointing=False, train_sampling_strategy="sequential", disable_tqdm=True,
            dataloader_pin_memory=False, **settings,
        )  # fmt: skip
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        trainer = Recorder(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(), **extra
        )
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry][: inputs.STEPS]
    kept = ("rewards/", "logps/", "accuracy", "margin", "mean_reward")
    return {
        "losses": losses,
        "metrics": [{k: v for k, v in entry.items() if k.startswith(kept)} for entry in history],
        "moved": {key: (p.detach() - before[key]).norm().item() for key, p in model.named_parameters()},
    }


def trainer_figures() -> dict:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    shape = inputs.SHAPES["grouped"]
    pairs = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in inputs.PAIRS]
    dpo = train(
        "DPO", llama("grouped"), pairs, ref_model=llama("grouped", "reference"), beta=inputs.BETA,
        per_device_train_batch_size=len(pairs),
    )  # fmt: skip
    scorer = LlamaForSequenceClassification(LlamaConfig(**configuration(shape), num_labels=1))
    weights = inputs.llama_weights(shape, inputs.SEED["policy"])
    fill(scorer, weights | {"score.weight": inputs.score_weight(shape)})
    whole = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in inputs.PAIRS]
    reward = train(
        "Reward", scorer, whole, center_rewards_coefficient=inputs.CENTER, per_device_train_batch_size=len(pairs),
        disable_dropout=True,
    )  # fmt: skip
    rows = [{"input_ids": p + c, "labels": [-100] * len(p) + c} for p, c in inputs.CONVERSATIONS]
    sft = train(
        "SFT", llama("grouped"), rows, per_device_train_batch_size=inputs.MICRO_BATCH,
        gradient_accumulation_steps=len(rows) // inputs.MICRO_BATCH,
    )  # fmt: skip
    return {"dpo": dpo, "reward": reward, "sft": sft}


def ppo_figures() -> dict:
    from trl.trainer import AdaptiveKLController
    from trl.trainer.ppo_trainer import PPOTrainer

    given = {name: torch.from_numpy(value) for name, value in inputs.ppo_numbers().items()}
    mask = given["mask"].float()
    settings = inputs.PPO
    this = SimpleNamespace(
        config=SimpleNamespace(
            kl_penalty="kl", gamma=settings["gamma"], lam=settings["lam"], whiten_rewards=False, ratio_threshold=1e9,
            cliprange=settings["clip"], cliprange_value=settings["value_clip"], vf_coef=settings["value_weight"],
        ),
        kl_ctl=SimpleNamespace(value=settings["kl_coefficient"]),
    )  # fmt: skip
    this._kl_penalty = lambda a, b: PPOTrainer._kl_penalty(this, a, b)
    rewards, _, _ = PPOTrainer.compute_rewards(
        this, given["scores"], given["old_logps"], given["ref_logps"], given["mask"].long()
    )
    values, advantages, returns = PPOTrainer.compute_advantages(this, given["values"], rewards, mask)
    this.config.whiten_rewards = True
    _, _, returns_of_whitened = PPOTrainer.compute_advantages(this, given["values"], rewards, mask)
    logps, new_values = given["logps"].requires_grad_(), given["new_values"].requires_grad_()
    policy, value, stats = PPOTrainer.loss(
        this, given["old_logps"], values, torch.zeros(5, 8, 3), new_values, logps, mask, advantages, returns
    )
    slopes = torch.autograd.grad(policy + value, (logps, new_values))
    control = inputs.KL_CONTROL
    controller, coefficients = AdaptiveKLController(control["coefficient"], control["target"], control["horizon"]), []
    for kl in control["kl"]:
        controller.update(kl, control["steps"])
        coefficients.append(float(controller.value))
    return {
        "rewards": numbers(rewards * mask), "advantages": numbers(advantages * mask),
        "returns": numbers(returns * mask), "returns_of_whitened": numbers(returns_of_whitened * mask),
        "policy_loss": policy.item(), "value_loss": value.item() / settings["value_weight"],
        "clip_fraction": stats["policy/clipfrac"].item(),
        "slope_of_logps": numbers(slopes[0]), "slope_of_values": numbers(slopes[1]), "kl_coefficients": coefficients,
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    part = sys.argv[1]
    made = {"models": lambda: {name: forward_figures(name) for name in inputs.SHAPES} | trainer_figures(),
            "ppo": lambda: {"ppo": ppo_figures()}}[part]()  # fmt: skip
    figures |= made
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    figures["versions"] = dict(sorted((figures.get("versions", {}) | {part: versions}).items()))
    FIGURES.write_text(json.dumps(figures, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
