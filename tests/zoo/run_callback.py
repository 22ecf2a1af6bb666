"""Hugging Face's Trainer with randbp's callback: it repeats, resumes and restores. Run by ``make zoo``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import randbp
from randbp.integrations.huggingface import TensorDropoutCallback

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
TOKENS = torch.randint(50, (32, 12), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": tokens, "labels": tokens[0] % 2} for tokens in TOKENS]


def network() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG)


def trained(folder: Path, resume: bool = False, steps: int = 4, accumulate: int = 2, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        lr_scheduler_type="constant",
        disable_tqdm=True,
    )
    callbacks = [TensorDropoutCallback(**options)] if options else []
    trainer = Trainer(network(), arguments, train_dataset=DATA, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()


def test_exact_is_what_trainer_trains_alone(tmp_path: Path) -> None:
    assert torch.equal(weights(trained(tmp_path / "a")), weights(trained(tmp_path / "b", preset="exact")))


def test_a_resumed_run_repeats_the_uninterrupted_one_and_micro_batches_differ(tmp_path: Path) -> None:
    whole = weights(trained(tmp_path / "a", preset="memory", seed=3))
    assert not torch.equal(whole, weights(trained(tmp_path / "b", preset="memory", seed=4)))
    trained(tmp_path / "c", steps=2, preset="memory", seed=3)
    assert torch.equal(whole, weights(trained(tmp_path / "c", resume=True, preset="memory", seed=3)))


def test_it_restores_the_model_also_after_a_failure(tmp_path: Path) -> None:
    class Failing(Trainer):
        failing = True

        def training_step(self, model: Any, *args: Any, **keywords: Any) -> torch.Tensor:
            if self.failing:
                raise RuntimeError("out of data")
            return super().training_step(model, *args, **keywords)

    callback = TensorDropoutCallback(preset="memory")
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    trainer = Failing(network(), arguments, train_dataset=DATA, callbacks=[callback])
    with pytest.raises(RuntimeError, match="out of data"):
        trainer.train()
    assert callback.handle is not None
    trainer.failing = False
    trainer.train()
    assert callback.handle is None
    randbp.randomize(trainer.model, preset="memory").remove()  # refuses a randomised model


def test_wrong_options_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="preset='fast'"):
        TensorDropoutCallback(preset="fast")
    with pytest.raises(ValueError, match="bits=0"):
        TensorDropoutCallback(bits=0)
    with pytest.raises(TypeError, match="keep"):
        TensorDropoutCallback(keep=0.5)
