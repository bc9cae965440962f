import { readFile } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import type { ChoiceSummary, NeedleCell, PositionLoss } from '@asa/core';
import { Command } from '@commander-js/extra-typings';
import type { TopLevelSpec } from 'vega-lite';
import { UsageError } from '../exit';
import { choicePlot } from '../plot/choice';
import { type LossCurve, lossPlot } from '../plot/loss';
import { needlePlot } from '../plot/needle';
import { positionPlot } from '../plot/positions';
import { plotFile, writePlot } from '../plot/render';

export const command = new Command('plot')
  .description(
    'Draws what was measured: logs of `asa train`, or what `asa eval` prints ' +
      'with --json. Several logs, or several losses, share a chart.',
  )
  .argument('<file...>', 'train.jsonl, or the JSON of an evaluation')
  .requiredOption('--out <file>', 'the chart, .svg or .png', plotFile)
  .option(
    '--names <list>',
    "of the files, in the chart; each file's folder when left out",
    (text) => text.split(','),
  )
  .addHelpText(
    'after',
    '\nExample:\n  asa plot ./asa/train.jsonl ./full/train.jsonl --out loss.svg',
  )
  .action(async (files, { out, names }) => {
    const measured = await Promise.all(
      files.map(async (file, i) => ({
        file,
        name: names?.[i] ?? basename(dirname(resolve(file))),
        records: await readRecords(file),
      })),
    );
    await writePlot(out, chart(measured));
  });

interface Measured {
  readonly file: string;
  readonly name: string;
  readonly records: readonly Record<string, unknown>[];
}

/** The chart that fits what the files hold. */
function chart(measured: readonly Measured[]): TopLevelSpec {
  const [first] = measured;
  const kind = first && kindOf(first);
  for (const one of measured) {
    if (kindOf(one) === kind) continue;
    throw new UsageError(
      `${one.file}: must hold the same as ${first?.file}, ${kind}, got ${kindOf(one)}`,
    );
  }
  const [record = {}] = first?.records ?? [];
  switch (kind) {
    case 'step':
      return lossPlot(measured.map(lossCurve));
    case 'perplexity':
      return positionPlot(
        measured.map(({ name, records: [record] }) => ({
          name,
          positions: record?.positions as readonly PositionLoss[],
        })),
      );
    case 'needle':
      return needlePlot(record.cells as readonly NeedleCell[]);
    case 'choice':
      return choicePlot(
        record.tasks as readonly (ChoiceSummary & { task: string })[],
      );
    default:
      throw new UsageError(
        `${first?.file}: must be a training log or the JSON of an evaluation`,
      );
  }
}

const kindOf = ({ records }: Measured): unknown => records[0]?.kind;

function lossCurve({ name, records }: Measured): LossCurve {
  let before = 0;
  let learned = 0;
  const steps = records.flatMap(({ kind, tokens, loss }) => {
    if (kind !== 'step') return [];
    // A log may hold runs one behind the other, each counting from 0.
    const now = Number(tokens);
    learned += now >= before ? now - before : now;
    before = now;
    return [{ tokens: learned, loss: Number(loss) }];
  });
  return { name, steps };
}

/** One JSON value, or one a line. */
async function readRecords(file: string): Promise<Record<string, unknown>[]> {
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw new UsageError(`${file}: ${cause.message}`, { cause });
  });
  const whole = parsed(text);
  if (whole) return [whole];
  return text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line, i) => {
      const record = parsed(line);
      if (record) return record;
      throw new UsageError(`${file}:${i + 1}: must be a JSON object`);
    });
}

function parsed(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    const isObject = typeof value === 'object' && value !== null;
    return isObject ? { ...value } : undefined;
  } catch {
    return undefined;
  }
}
