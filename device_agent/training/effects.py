"""The computations that a session asks for, over the trainer and the state folder. For the torch thread."""

from __future__ import annotations

from dataclasses import replace

from broker.protocol import messages as m
from broker.protocol.rows import row_names
from device_agent.rounds.ends import SEALED
from device_agent.session import events as e
from device_agent.state_folder import StateFolder
from device_agent.training.trainer import DeviceTrainer
from spliteasy.training.digest import strong_digest
from spliteasy.training.segment_trainer import tensors_of

ASKED_HISTORY = 2
"""Checkpoints kept, at most, where the server asks for them: each older one holds its log back."""


def perform(action: e.Action, trainer: DeviceTrainer, state: StateFolder) -> e.Event:
    """Compute what a session asks for; the result as an event.

    Raises StateError, NotFiniteOnDevice, DataError, RemoteError.
    """
    match action:
        case e.RaiseAttempt(above=above):
            attempt = state.raise_attempt(above)
            return e.AttemptRaised(m.AttemptRef(number=attempt.number, nonce=attempt.nonce))
        case e.Restore(step=step):
            trainer.load_state(state.load_checkpoint(step), step=step)
            state.drop_after(step)
            best = trainer.evaluator.best
            if best is None:
                return e.Restored(state.held())
            _keep_if_best(trainer, state)
            # A training that has gone back to its best says once more what that is.
            evaluated = best.judged == step and not (trainer.ended and best.ended)
            return e.Restored(state.held(), evaluated, trainer.ended, best.kept)
        case e.RunHead(step=step, micro=micro):
            done = trainer.run_head(step, micro)
            if trainer.names_rows:
                done = replace(done, names=row_names(done.values.values, done.samples))
            if trainer.budget is not None:
                sent = " ".join(map(strong_digest, tensors_of(done.values.values)))
                trainer.budget.count(step, "head", sent)
            return done
        case e.RunTail(values=values, micro=micro):
            gradients, noise = trainer.run_tail(values, micro), trainer.body_noise
            if trainer.budget is not None and noise is not None:
                trainer.budget.count(trainer.step + 1, "tail", noise.fingerprint)
            return e.TailDone(gradients, trainer.shared_loss, noise)
        case e.RunHeadBackward(gradients=gradients, loss=loss):
            trainer.run_head_backward(gradients, loss)
            return e.HeadBackwardDone()
        case e.Apply(skipped=True):
            trainer.skip()
            return e.Applied()
        case e.Apply(gradients=gradients, loss=loss):
            trainer.apply(gradients, loss)
            return e.Applied()
        case e.HandIn():
            trainer.abort()
            nonce, rounds = m.new_nonce(), trainer.rounds
            ends = rounds.hand_in(nonce)
            sealed = nonce if SEALED in ends else None
            place, whole = rounds.place, rounds.whole_round
            accuracy = trainer.told_accuracy
            return e.HandInDone(place.round, ends, rounds.key_name, place.samples, sealed, whole, accuracy)
        case e.TakeMean(mean=mean):
            trainer.abort()
            means = dict(zip(mean.names, tensors_of(mean.values), strict=False))
            if mean.sealed is not None and SEALED in means:
                means = trainer.rounds.opened(means[SEALED], mean.sealed)
            trainer.rounds.take_mean(
                None if mean.initial else means,
                round_=mean.round,
                drawn=mean.drawn,
                opened=mean.opened,
                kept=mean.kept,
                scheduled=mean.scheduled,
            )
            return e.Applied()
        case e.Save(step=step, durable_step=durable_step, asked=asked):
            trainer.abort()
            if step not in state.held():
                state.save_checkpoint(step, trainer.state())
            _keep_if_best(trainer, state)
            history = trainer.job.spec.durability.checkpoint_history
            state.prune(durable_step, min(history, ASKED_HISTORY) if asked else history)
            return e.Saved(state.held())
        case e.GoBack(step=step):
            state.go_back(step, trainer.best_at_the_end(state.load_best(step)))
            return e.WentBack(state.held())
        case e.EvalHead(index=index):
            return trainer.evaluator.head_values(index)
        case e.EvalTail(index=index, values=values):
            more, best = trainer.evaluator.take_outputs(index, values), trainer.evaluator.best
            kept = best.kept if best is not None else 0
            return e.EvalTailDone(more, not more and trainer.ended, kept)
    raise AssertionError(f"{action} is no computation")


def _keep_if_best(trainer: DeviceTrainer, state: StateFolder) -> None:
    """Keep the checkpoint of the trainer's step, where its evaluation is the best so far."""
    best = trainer.evaluator.best
    if best is not None and 0 < best.kept == trainer.step and not best.ended:
        state.keep_best(trainer.step)
