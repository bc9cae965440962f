import type { TrainEvent } from '@asa/core';
import { formatDuration, formatNumber, grouped, note } from './terminal';

/** Shows a training run on stderr. */
export interface TrainingMonitor {
  show(event: TrainEvent): void;
  stop(): void;
}

/** Seconds between two lines where stderr is no terminal. */
const QUIET_SECONDS = 10;

/**
 * One line that is written over where stderr is a terminal, else a line every
 * ten seconds. Held-out losses and checkpoints get lines of their own.
 * @param steps of the run; none where only time ends it.
 */
export function trainingMonitor(steps: number | undefined): TrainingMonitor {
  const { stderr } = process;
  const began = performance.now();
  let shown = Number.NEGATIVE_INFINITY;
  let first: number | undefined;
  let isLineOpen = false;
  const clear = () => {
    if (stderr.isTTY) stderr.write('\r\x1b[K');
    isLineOpen = false;
  };
  return {
    show(event) {
      const now = performance.now();
      if (event.kind === 'step') {
        first ??= event.step - 1;
        const isLast = event.step === steps;
        if (!stderr.isTTY && now - shown < QUIET_SECONDS * 1000 && !isLast) {
          return;
        }
        shown = now;
        const each = (now - began) / 1000 / (event.step - first);
        const line = stepLine(event, steps, each);
        clear();
        // A line that wraps could not be written over.
        const { columns = 80 } = stderr;
        stderr.write(stderr.isTTY ? line.slice(0, columns - 1) : `${line}\n`);
        isLineOpen = stderr.isTTY;
      } else if (event.kind === 'evaluation') {
        clear();
        const { loss, bitsPerByte } = event;
        const bits =
          bitsPerByte === undefined
            ? ''
            : `, ${bitsPerByte.toFixed(4)} bits a byte`;
        note(`step ${event.step}: held-out loss ${loss.toFixed(4)}${bits}`);
      } else if (event.kind === 'checkpoint') {
        clear();
        note(`step ${event.step}: saved`);
      }
    },
    stop: () => isLineOpen && stderr.write('\n'),
  };
}

/** What matters most comes first: a narrow terminal shows no more. */
function stepLine(
  event: Extract<TrainEvent, { kind: 'step' }>,
  steps: number | undefined,
  secondsPerStep: number,
): string {
  const left = steps && formatDuration((steps - event.step) * secondsPerStep);
  return [
    steps ? `step ${event.step}/${steps}` : `step ${event.step}`,
    `loss ${event.loss.toFixed(4)}`,
    `${formatNumber(event.tokensPerSecond)} tokens/s`,
    ...(left ? [`${left} left`] : []),
    `rate ${event.learningRate.toExponential(1)}`,
    `norm ${event.gradientNorm.toFixed(2)}`,
    `${grouped(event.tokens)} tokens`,
  ].join('  ');
}
