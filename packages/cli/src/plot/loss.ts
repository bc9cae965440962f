import type { TopLevelSpec } from 'vega-lite';
import { schema, style } from './style';

/** A training run as its log tells it. */
export interface LossCurve {
  readonly name: string;
  /** Mean loss of each step, nats a token, over the tokens learned from. */
  readonly steps: readonly { readonly tokens: number; readonly loss: number }[];
}

/** Points of a curve: more cannot be seen. */
const points = 300;

/** Loss over tokens, a line a run; each point is the mean of the steps before. */
export function lossPlot(curves: readonly LossCurve[]): TopLevelSpec {
  const values = curves.flatMap(({ name, steps }) => {
    const each = Math.max(1, Math.ceil(steps.length / points));
    return Array.from({ length: Math.ceil(steps.length / each) }, (_, i) => {
      const some = steps.slice(i * each, (i + 1) * each);
      const total = some.reduce((sum, { loss }) => sum + loss, 0);
      const millions = (some.at(-1)?.tokens ?? 0) / 1e6;
      return { run: name, millions, loss: total / some.length };
    });
  });
  return {
    $schema: schema,
    config: style,
    data: { values },
    width: 460,
    height: 260,
    mark: { type: 'line', strokeWidth: 1.5 },
    encoding: {
      x: {
        field: 'millions',
        type: 'quantitative',
        title: 'tokens learned from, millions',
      },
      y: {
        field: 'loss',
        type: 'quantitative',
        scale: { zero: false },
        title: 'loss, nats a token',
      },
      color: {
        field: 'run',
        title: null,
        ...(curves.length === 1 && { legend: null }),
      },
    },
  };
}
