import { openCpu } from '@asa/backend-cpu';
import { type Backend, preset } from '@asa/core';
import {
  type BenchOptions,
  type BenchReport,
  bench,
  benchCases,
  profiles,
} from '@asa/core/bench';
import { withKernels } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const profile = {
  ...profiles.small,
  ...{ heads: 4, groups: 2, width: 8, ropeWidth: 4, hidden: 16 },
  ...{ matrices: [32], copyBytes: 2 ** 14, contexts: [64], generate: 4 },
  stepTokens: 64,
};
const config = preset('tiny', { layers: 2, vocabularySize: 64 });
const model = { name: 'tiny', config };

let backend: Backend;
let reference: Backend;
beforeAll(async () => {
  backend = await openCpu();
  reference = await openCpu({ poison: true });
});
afterAll(async () => {
  await backend.destroy();
  await reference.destroy();
});

async function run(options: Partial<BenchOptions> = {}): Promise<BenchReport> {
  for await (const event of bench({
    backend,
    reference,
    profile,
    model,
    dtypes: ['f32'],
    seconds: 0.001,
    repetitions: 2,
    ...options,
  })) {
    if (event.type === 'report') return event.report;
  }
  throw new Error('no report');
}

describe('bench', () => {
  it('measures every case of every suite, each behind a check', async () => {
    const before = backend.memory().bytesInUse;
    const { rows, passed, complete } = await run();
    expect({ passed, complete }).toEqual({ passed: true, complete: true });
    for (const row of rows) {
      expect(row).toMatchObject({ status: 'ok' });
      expect(row.worst).toBeLessThanOrEqual(100);
      expect(row.timing).toMatchObject({ repetitions: 2 });
      expect(row.timing?.ms).toBeGreaterThan(0);
      expect(row.cost?.bytes).toBeGreaterThan(0);
      if (row.suite !== 'ceilings') expect(row.cost?.flops).toBeGreaterThan(0);
    }
    const names = rows.map(({ suite, name }) => `${suite} ${name}`);
    expect(names).toEqual(
      benchCases({
        ...{ backend, reference, profile, model, dtypes: ['f32'] },
      }).map(({ suite, name }) => `${suite} ${name}`),
    );
    expect(names).toEqual(
      expect.arrayContaining([
        ...['ceilings copy', 'ceilings peak matmul', 'matmul matmul'],
        ...['operators attention', 'operators attentionBackward'],
        ...['operators selectBlocks r=4', 'operators selectBlocks r=1'],
        ...['operators selectedAttentionBackward r=4'],
        ...['layers ASA global r=4, forward', 'layers NSA, backward'],
        ...['layers ASA local, forward', 'layers full, backward'],
        ...['model pp64', 'model tg4', 'model tg4 @ d64'],
        ...['training train 1 x 64'],
      ]),
    );
    expect(backend.memory().bytesInUse).toBe(before);
  });

  it('decodes as deep as the context leaves room for what is generated', () => {
    const cases = benchCases({
      ...{ backend, reference, profile, dtypes: ['f32'], suites: ['model'] },
      ...{ model: { name: 'tiny', config: { ...config, context: 64 } } },
      contexts: [32, 64, 128],
    });
    const depths = cases.filter(({ name }) => name.startsWith('tg'));
    expect(depths.map(({ name }) => name)).toEqual([
      ...['tg4', 'tg4 @ d32', 'tg4 @ d59'],
    ]);
  });

  it('a wrong kernel has no time', async () => {
    const wrong = withKernels(backend, {
      attention: (own) => (inputs, outputs, attributes) =>
        own(inputs, outputs, { ...(attributes as object), scale: 1 }),
    });
    const { rows, passed } = await run({
      backend: wrong,
      only: ['operators attention', 'matmul'],
    });
    expect(passed).toBe(false);
    const row = rows.find(({ name }) => name === 'attention');
    expect(row).toMatchObject({ status: 'mismatch' });
    expect(row?.detail).toMatch(/of the allowance/);
    expect(row).not.toHaveProperty('timing');
    expect(row?.rates).toBeUndefined();
    const product = rows.find(({ name }) => name === 'matmul');
    expect(product).toMatchObject({ status: 'ok' });
  });

  it('what a backend lacks is missing, with the reason', async () => {
    const { attention: _, ...kernels } = backend.kernels;
    const without = { ...withKernels(backend, {}), kernels };
    const { rows, passed } = await run({
      backend: without as Backend,
      only: ['operators attention'],
    });
    expect(passed).toBe(true);
    expect(rows.find(({ name }) => name === 'attention')).toMatchObject({
      status: 'missing',
      detail: 'it has no kernel for it',
    });
  });

  it('a signal ends it between repetitions, with what was done', async () => {
    const controller = new AbortController();
    const rows: string[] = [];
    const events = bench({
      ...{ backend, reference, profile, dtypes: ['f32'] },
      ...{ seconds: 0.001, repetitions: 2, signal: controller.signal },
    });
    for await (const event of events) {
      if (event.type === 'row') rows.push(event.row.name);
      if (rows.length === 2) controller.abort();
      if (event.type === 'report') {
        expect(event.report.complete).toBe(false);
        expect(event.report.rows.map(({ name }) => name)).toEqual(rows);
      }
    }
    expect(rows).toEqual(['copy', 'add']);
  });

  it('gives rates as shares of the ceilings of the same run', async () => {
    const { rows } = await run({ only: ['matmul'] });
    const copy = rows.find(({ name }) => name === 'copy');
    const add = rows.find(({ name }) => name === 'add');
    const shares = [copy, add].map((row) => row?.rates?.ofBandwidth ?? 0);
    expect(Math.max(...shares)).toBeCloseTo(100);
    const best = Math.max(...rows.map(({ rates }) => rates?.ofPeak ?? 0));
    expect(best).toBeCloseTo(100);
  });
});
