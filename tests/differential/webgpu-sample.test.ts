import { openCpu } from '@asa/backend-cpu';
import { openWebGpu } from '@asa/backend-gpu';
import { type Backend, operators, Random, Scope } from '@asa/core';
import { differential } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`sampling on the device ${reason ?? ''}`, () => {
  let gpu: Backend;
  let cpu: Backend;
  beforeAll(async () => {
    gpu = await openWebGpu({ gpu: softwareGpu(), poison: true });
    cpu = await openCpu({ poison: true });
  }, 60_000);
  afterAll(async () => {
    await gpu.destroy();
    await cpu.destroy();
  });

  test('takes what the rule says, in many cases', {
    timeout: 120_000,
  }, async () => {
    const trial = { backend: gpu, reference: cpu };
    const options = { seed: 5, cases: 150 };
    const outcome = await differential(trial, 'sample', 'f32', options);
    expect(outcome.detail).toBeUndefined();
    expect(outcome).toMatchObject({ status: 'ok', cases: 150 });
  });

  test('ties go to the lowest ids, and -Infinity never comes', async () => {
    const none = Number.NEGATIVE_INFINITY;
    // A third each for 2, 4 and 5 behind what cannot come.
    const row = [none, 1, 3, none, 3, 3, none];
    const at = (random: number, topK: number, topP = 1) =>
      [1, topK, topP, 0, random] as const;
    const settings = [
      [0, 1, 1, 0, 0.9],
      at(0, 7),
      at(0.999999, 7),
      at(0.999999, 3),
      at(0.999999, 2),
      at(0.4, 2),
      at(0.999999, 3, 0.5),
      at(0.999999, 3, 0.3),
    ];
    const want = [2, 1, 5, 5, 4, 2, 4, 2];
    expect(await tokensOf(cpu, row, settings)).toEqual(want);
    expect(await tokensOf(gpu, row, settings)).toEqual(want);
  });

  test('logits that are NaN or +Infinity give no token', async () => {
    const settings = [[1, 3, 1, 0, 0.5]];
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(await tokensOf(cpu, [1, bad, 0], settings)).toEqual([-1]);
      expect(await tokensOf(gpu, [1, bad, 0], settings)).toEqual([-1]);
    }
  });

  test('takes each token as often as its probability says', async () => {
    const row = [0, 1, 2, 0.5];
    const random = Random.fromSeed(1);
    const settings = Array.from({ length: 600 }, () => [
      1,
      4,
      1,
      0,
      random.uniform(),
    ]);
    const tokens = await tokensOf(gpu, row, settings);
    const sum = row.reduce((total, x) => total + Math.exp(x), 0);
    for (const [token, x] of row.entries()) {
      const share = tokens.filter((t) => t === token).length / tokens.length;
      expect(Math.abs(share - Math.exp(x) / sum)).toBeLessThan(0.06);
    }
  });
});

/** The tokens of rows that are all alike. */
async function tokensOf(
  backend: Backend,
  row: readonly number[],
  settings: readonly (readonly number[])[],
): Promise<number[]> {
  const scope = new Scope(backend);
  const rows = settings.length;
  const logits = Float32Array.from(settings.flatMap(() => row));
  const { tokens } = scope.run(
    operators.sample,
    {
      logits: scope.tensor(logits, [rows, row.length], 'f32'),
      settings: scope.tensor(
        Float32Array.from(settings.flat()),
        [rows, 5],
        'f32',
      ),
    },
    { width: row.length },
  );
  const values = Array.from(await scope.read(tokens));
  scope.free();
  return values;
}
