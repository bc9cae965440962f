import type { ChoiceSummary } from '@asa/core';
import type { TopLevelSpec } from 'vega-lite';
import { schema, style } from './style';

/** Bars of accuracy with their standard errors; a tick where guessing lies. */
export function choicePlot(
  tasks: readonly (ChoiceSummary & { readonly task: string })[],
): TopLevelSpec {
  const values = tasks.flatMap(({ task, acc, accNorm, chance }) =>
    [
      { measure: 'acc', found: acc },
      { measure: 'acc_norm', found: accNorm },
    ].flatMap(({ measure, found }) => {
      if (!found) return [];
      const { accuracy, standardError: error } = found;
      const [low, high] = [accuracy - error, accuracy + error];
      return [{ task, measure, accuracy, low, high, chance }];
    }),
  );
  const y = {
    field: 'task',
    type: 'nominal',
    sort: null,
    title: null,
  } as const;
  const yOffset = { field: 'measure' } as const;
  return {
    $schema: schema,
    config: style,
    data: { values },
    width: 420,
    height: { step: 16 },
    layer: [
      {
        mark: 'bar',
        encoding: {
          y,
          yOffset,
          x: {
            field: 'accuracy',
            type: 'quantitative',
            scale: { domain: [0, 1] },
            title: 'accuracy; line: standard error, tick: chance',
          },
          color: { field: 'measure', title: null },
        },
      },
      {
        mark: { type: 'rule', color: '#333' },
        encoding: {
          y,
          yOffset,
          x: { field: 'low', type: 'quantitative' },
          x2: { field: 'high' },
        },
      },
      {
        mark: { type: 'tick', color: 'black', thickness: 2 },
        encoding: { y, yOffset, x: { field: 'chance', type: 'quantitative' } },
      },
    ],
  };
}
