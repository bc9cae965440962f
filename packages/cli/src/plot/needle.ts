import type { NeedleCell } from '@asa/core';
import type { TopLevelSpec } from 'vega-lite';
import { schema, style } from './style';

/** Accuracy as colour over length and depth, a panel a task. */
export function needlePlot(cells: readonly NeedleCell[]): TopLevelSpec {
  const values = cells.map(({ task, length, depth = 0, accuracy }) => ({
    task: `S-NIAH-${task}`,
    length,
    depth: Math.round(100 * depth),
    accuracy,
  }));
  const axes = {
    x: {
      field: 'length',
      type: 'ordinal',
      title: 'tokens',
      axis: { labelAngle: 0 },
    },
    y: { field: 'depth', type: 'ordinal', title: 'depth of the needle, %' },
  } as const;
  return {
    $schema: schema,
    config: style,
    data: { values },
    facet: { column: { field: 'task', title: null } },
    spec: {
      width: { step: 52 },
      height: { step: 22 },
      layer: [
        {
          mark: 'rect',
          encoding: {
            ...axes,
            color: {
              field: 'accuracy',
              type: 'quantitative',
              scale: { domain: [0, 1], scheme: 'viridis' },
              title: 'accuracy',
            },
          },
        },
        {
          mark: { type: 'text', fontSize: 10 },
          encoding: {
            ...axes,
            text: { field: 'accuracy', format: '.2f' },
            color: {
              condition: { test: 'datum.accuracy > 0.6', value: 'black' },
              value: 'white',
            },
          },
        },
      ],
    },
  };
}
