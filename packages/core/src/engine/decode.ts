import type { BatchEvent } from './generate';
import type { TokenLogprob } from './sampler';
import type { Step, Steps } from './steps';
import type { Timeline } from './timeline';

/** A generation whose tokens are chosen on the device. */
export interface DeviceGeneration {
  readonly timeline: Timeline;
  readonly hasEnded: boolean;
  /** Whether it needs a further token behind `ahead` that are on their way. */
  wants(ahead: number): boolean;
  /** The next row of the operator `sample`'s settings. */
  settings(): readonly number[];
  /** Ends where it must before a token is asked for. */
  endEarly(): Iterable<BatchEvent>;
  /** Takes the token, or ends, or both. */
  accept(token: TokenLogprob): Iterable<BatchEvent>;
}

/** A step whose tokens are not read yet. */
interface Flight {
  readonly members: readonly DeviceGeneration[];
  readonly step: Step;
}

/**
 * Generates until all have ended. A step takes its tokens from the one before,
 * on the device, and is enqueued before that one's tokens are read: the device
 * never waits for the host. What a step did for a generation that turns out to
 * have ended is taken back; a recurrent state cannot be, so there each step
 * waits.
 */
export async function* decode(
  steps: Steps,
  generations: readonly DeviceGeneration[],
): AsyncGenerator<BatchEvent, void, undefined> {
  const isAhead = generations.every(({ timeline }) => timeline.canGoBack);
  const inFlight: Flight[] = [];
  const start = (
    members: readonly DeviceGeneration[],
    before?: Flight,
  ): Flight | undefined => {
    const flight = launch(steps, members, before);
    if (!flight) return undefined;
    flight.step.holders += 1;
    inFlight.push(flight);
    return flight;
  };
  try {
    start(generations);
    for (;;) {
      const [flight] = inFlight;
      if (!flight) break;
      const { members, step } = flight;
      const reading = steps.read(step);
      // Nobody waits for it where the next step cannot start.
      reading.catch(() => {});
      const next = isAhead ? start(members, flight) : undefined;
      const chosen = await reading;
      for (const [row, generation] of members.entries()) {
        if (generation.hasEnded) continue;
        yield* generation.endEarly();
        if (generation.hasEnded) continue;
        yield* generation.accept({
          token: chosen[2 * row] ?? -1,
          logprob: chosen[2 * row + 1] ?? 0,
        });
      }
      inFlight.shift();
      step.holders -= 1;
      if (!next) start(members);
    }
    for (const generation of generations) yield* generation.endEarly();
  } finally {
    for (const { step } of inFlight) step.holders -= 1;
    for (const { timeline } of generations) timeline.cancel();
  }
}

/** A step for those that need one; its tokens are the host's or `before`'s. */
function launch(
  steps: Steps,
  generations: readonly DeviceGeneration[],
  before?: Flight,
): Flight | undefined {
  const ahead = before ? 1 : 0;
  const members = generations.filter(
    (generation) => !generation.hasEnded && generation.wants(ahead),
  );
  if (members.length === 0) return undefined;
  const place = {
    slots: members.map(({ timeline }) => timeline.slot),
    pasts: members.map(({ timeline }) => timeline.ran),
  };
  const tokens = before
    ? {
        from: before.step.tokens,
        rows: members.map((member) => before.members.indexOf(member)),
      }
    : members.map(({ timeline }) => timeline.next(1).tokens[0] ?? 0);
  const settings = members.flatMap((member) => member.settings());
  for (const { timeline } of members) timeline.begin(1);
  const step = steps.run(place, tokens, settings);
  for (const { timeline } of members) timeline.complete(1);
  return { members, step };
}
