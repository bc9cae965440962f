import { openCpu } from '@asa/backend-cpu';
import type { Backend } from '@asa/core';
import {
  type VerifyEvent,
  type VerifyOptions,
  verify,
  verifyAll,
  withKernels,
} from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

let backend: Backend;
let reference: Backend;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
  reference = await openCpu({ poison: true });
});
afterAll(async () => {
  await backend.destroy();
  await reference.destroy();
});

const run = (options: Partial<VerifyOptions>) =>
  verifyAll({ backend, reference, cases: 5, ...options });

async function collect(options: Partial<VerifyOptions>) {
  const events: VerifyEvent[] = [];
  const all = verify({ backend, reference, cases: 5, ...options });
  for await (const event of all) events.push(event);
  return events;
}

/** A backend that lacks an operator, as most do at first. */
function withoutKernel(name: string): Backend {
  const { [name as never]: _, ...kernels } = backend.kernels;
  return {
    ...withKernels(backend, {}),
    kernels,
    supports: (operator, ...call) =>
      operator === name
        ? 'nobody wrote it yet'
        : backend.supports(operator, ...call),
  };
}

describe('verify', () => {
  test('starts each step, gives its row, and ends with the report', async () => {
    const options = { suites: ['operators'], dtypes: ['f32'] } as const;
    const events = await collect({ ...options, only: 'matmul' });
    expect(events.map(({ type }) => type)).toEqual(['start', 'row', 'report']);
    expect(events[0]).toMatchObject({ name: 'matmul', done: 0, total: 1 });
    expect(events[1]).toMatchObject({ row: { status: 'ok', cases: 5 } });
    expect(events[2]).toMatchObject({ report: { passed: true, seed: 1 } });
  });

  test('gives the same report for the same seed, through JSON too', async () => {
    const options = { only: 'swiglu', seed: 4 };
    const [first, second] = [await run(options), await run(options)];
    expect(first).toEqual(second);
    expect(JSON.parse(JSON.stringify(first))).toEqual(first);
    expect((await run({ ...options, seed: 5 })).rows).not.toEqual(first.rows);
  });

  test('replays a counterexample by seed and path', async () => {
    const broken = withKernels(backend, {
      add: (own) => (inputs, outputs, attributes) =>
        own({ ...inputs, b: inputs.a }, outputs, attributes),
    });
    const options = {
      backend: broken,
      suites: ['operators'],
      dtypes: ['f32'],
      only: 'add',
    } as const;
    const [row] = (await run(options)).rows;
    expect(row?.detail).toMatch(/^a \[1, 1\], b \[1, 1\], f32, /);
    expect(row?.detail).toMatch(/y\[0, 0\] is .*, must be .*allowance/);
    const [again] = (await run({ ...options, path: row?.path ?? '' })).rows;
    expect(again?.status).toBe('mismatch');
    expect(again?.detail?.split(';')[0]).toBe(row?.detail?.split(';')[0]);
  });

  test('counts what a backend lacks, and fails on it where required', async () => {
    const options = {
      backend: withoutKernel('rope'),
      suites: ['operators'],
      dtypes: ['f32'],
      only: 'rope',
    } as const;
    const report = await run(options);
    expect(report).toMatchObject({ passed: true, missingCases: 5 });
    expect(report.rows).toMatchObject([
      { status: 'missing', missing: 5, detail: expect.any(String) },
    ]);
    expect((await run({ ...options, require: true })).passed).toBe(false);
  });

  test('counts laws that need what a backend lacks', async () => {
    const report = await run({
      backend: withoutKernel('rope'),
      suites: ['laws'],
      only: 'F: causality',
    });
    expect(report.rows).toMatchObject([{ status: 'missing', cases: 0 }]);
    expect(report.rows[0]?.detail).toMatch(/^rope: /);
  });

  test('a kernel that throws is a mismatch with its message', async () => {
    const broken = withKernels(backend, {
      add: () => () => {
        throw new Error('device on fire');
      },
    });
    const { rows } = await run({
      backend: broken,
      only: 'add',
      dtypes: ['f32'],
      suites: ['operators'],
    });
    expect(rows).toMatchObject([{ status: 'mismatch', worst: -1 }]);
    expect(rows[0]?.detail).toMatch(/device on fire/);
  });

  test('runs in f32 what has no f64, laws included', async () => {
    const single = {
      ...withKernels(backend, {}),
      name: 'single',
      supports: (
        operator: never,
        inputs: Readonly<Record<string, { dtype: string } | undefined>>,
        attributes: unknown,
      ) =>
        Object.values(inputs).some((spec) => spec?.dtype === 'f64')
          ? 'it has no f64'
          : backend.supports(operator, inputs as never, attributes),
    } as Backend;
    const report = await run({ backend: single, suites: ['laws'], cases: 5 });
    expect(report.rows.every(({ dtype }) => dtype === 'f32')).toBe(true);
    const faults = report.rows.filter(({ status }) => status !== 'ok');
    expect(faults).toEqual([]);
  }, 60_000);

  test('stops where its signal says so, and frees what it holds', async () => {
    const controller = new AbortController();
    const options = { backend, reference, signal: controller.signal };
    const events = verify({ ...options, cases: 1000 });
    const consume = async () => {
      for await (const event of events) {
        if (event.type === 'start' && event.done === 2) {
          setTimeout(() => controller.abort(new Error('enough')));
        }
      }
    };
    await expect(consume()).rejects.toThrow('enough');
    expect(backend.memory().bytesInUse).toBe(0);
  });

  test('refuses names of nothing and paths of many things', async () => {
    await expect(run({ only: 'nonsense' })).rejects.toThrow(
      /^verify: only must be part of the name/,
    );
    await expect(run({ path: '1:2' })).rejects.toThrow(/^verify: a path/);
    await expect(run({ suites: ['golden'] })).rejects.toThrow(
      /^verify: the golden suite needs a folder/,
    );
  });
});
