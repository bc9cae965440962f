import type { PositionLoss } from '@asa/core';
import type { TopLevelSpec } from 'vega-lite';
import { schema, style } from './style';

/** Loss over how many tokens a prediction saw, a line a model. */
export function positionPlot(
  models: readonly {
    readonly name: string;
    readonly positions: readonly PositionLoss[];
  }[],
): TopLevelSpec {
  const values = models.flatMap(({ name, positions }) =>
    positions.map(({ from, to, loss, standardError = 0 }) => ({
      model: name,
      seen: Math.sqrt(from * to),
      loss,
      low: loss - standardError,
      high: loss + standardError,
    })),
  );
  const x = {
    field: 'seen',
    type: 'quantitative',
    scale: { type: 'log', base: 2 },
    title: 'tokens seen before',
  } as const;
  const color = {
    field: 'model',
    title: null,
    ...(models.length === 1 && { legend: null }),
  } as const;
  return {
    $schema: schema,
    config: style,
    data: { values },
    width: 460,
    height: 260,
    layer: [
      {
        mark: { type: 'area', opacity: 0.2 },
        encoding: {
          x,
          y: { field: 'low', type: 'quantitative' },
          y2: { field: 'high' },
          color,
        },
      },
      {
        mark: { type: 'line', point: true },
        encoding: {
          x,
          y: {
            field: 'loss',
            type: 'quantitative',
            scale: { zero: false },
            title: 'loss, nats a token',
          },
          color,
        },
      },
    ],
  };
}
