"""The computations that a session asks for, over the trainer and the state folder. For the torch thread."""

from __future__ import annotations

from broker.protocol import messages as m
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
            stopping = trainer.evaluator.stopping
            if stopping is None:
                return e.Restored(tuple(state.held()))
            evaluated = stopping.judged == step
            return e.Restored(tuple(state.held()), evaluated, evaluated and stopping.finished)
        case e.RunHead(step=step, micro=micro):
            done = e.HeadDone(*trainer.run_head(step, micro))
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
            history = trainer.job.spec.durability.checkpoint_history
            state.prune(durable_step, min(history, ASKED_HISTORY) if asked else history)
            return e.Saved(tuple(state.held()))
        case e.EvalHead(index=index):
            return e.EvalHeadDone(*trainer.evaluator.head_values(index))
        case e.EvalTail(index=index, values=values):
            more = trainer.evaluator.take_outputs(index, values)
            finished = (
                not more and trainer.evaluator.stopping is not None and trainer.evaluator.stopping.finished
            )
            return e.EvalTailDone(more, finished)
    raise AssertionError(f"{action} is no computation")
