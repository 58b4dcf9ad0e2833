/** The computations that a session asks for, over the trainer and the state folder: `device_agent/training/effects.py`. */

import { newNonce } from "../protocol/hex.ts";
import { SEALED } from "../rounds/ends.ts";
import type { Computation, Event } from "../session/events.ts";
import type { StateFolder } from "../storage/state_folder.ts";
import type { DeviceTrainer } from "./trainer.ts";

/** Checkpoints kept, at most, where the server asks for them: each older one holds its log back. */
const ASKED_HISTORY = 2;
const HISTORY = 3;

/** Compute what a session asks for; the result as an event. */
export async function perform(action: Computation, trainer: DeviceTrainer, state: StateFolder): Promise<Event> {
  switch (action.type) {
    case "RaiseAttempt":
      return { type: "AttemptRaised", attempt: await state.raiseAttempt(action.above) };
    case "Restore": {
      await trainer.loadState(await state.loadCheckpoint(action.step), action.step);
      await state.dropAfter(action.step);
      const evaluated = trainer.stopping?.judged === action.step;
      return { type: "Restored", held: state.held(), evaluated, finished: evaluated && trainer.stopping?.isFinished === true };
    }
    case "RunHead":
      return { type: "HeadDone", ...(await trainer.runHead(action.step, action.micro)) };
    case "RunTail": {
      const gradients = await trainer.runTail(action.values, action.micro);
      return { type: "TailDone", gradients, loss: trainer.sharedLoss, noise: null };
    }
    case "RunHeadBackward":
      await trainer.runHeadBackward(action.gradients, action.loss);
      return { type: "HeadBackwardDone" };
    case "Apply":
      if (action.skipped) await trainer.skip();
      else await trainer.apply(action.gradients, action.loss);
      return { type: "Applied" };
    case "Save": {
      await trainer.abort();
      if (!state.held().includes(action.step)) await state.saveCheckpoint(action.step, await trainer.state());
      const history = trainer.parts.job.spec.durability?.checkpoint_history ?? HISTORY;
      await state.prune(action.durable_step, action.asked ? Math.min(history, ASKED_HISTORY) : history);
      return { type: "Saved", held: state.held() };
    }
    case "EvalHead":
      return { type: "EvalHeadDone", ...(await trainer.evalHead(action.index)) };
    case "EvalTail": {
      const more = await trainer.evalTail(action.index, action.values);
      return { type: "EvalTailDone", more, finished: !more && trainer.stopping?.isFinished === true };
    }
    case "GoBack":
      throw new Error("a job that keeps its best evaluation is refused before anything is trained");
    case "HandIn": {
      await trainer.abort();
      const nonce = newNonce();
      const { rounds } = trainer.parts;
      const ends = await rounds.handIn(nonce);
      const its = { round: rounds.place.round, samples: rounds.place.samples, whole: rounds.isWhole };
      return { type: "HandInDone", ends, fleet_key: rounds.shared?.name ?? null, nonce: SEALED in ends ? nonce : null, accuracy: trainer.toldAccuracy, ...its };
    }
    case "TakeMean":
      await trainer.takeMean(action.mean);
      return { type: "Applied" };
  }
}
