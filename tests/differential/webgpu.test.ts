import { openCpu } from '@asa/backend-cpu';
import { openWebGpu, type WebGpuBackend } from '@asa/backend-gpu';
import { type Backend, type OperatorName, operators } from '@asa/core';
import { differential, verifyAll } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  softwareGpu,
  softwareTypes,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

// Each case compiles kernels for its shapes, which takes a software adapter
// longer than running them. The second adapter tries f16 as well.
const CASES = softwareTypes.length > 1 ? 2 : 3;
// Most casts are to or from types that WebGPU lacks.
const CASTS = 60;

const cases = softwareTypes.flatMap((dtype) =>
  (Object.keys(operators) as OperatorName[]).map(
    (name) => [name, dtype] as const,
  ),
);

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`WebGPU in software ${reason ?? ''}`, () => {
  let backend: WebGpuBackend;
  let reference: Backend;

  beforeAll(async () => {
    backend = await openWebGpu({ gpu: softwareGpu(), poison: true });
    reference = await openCpu({ poison: true });
  }, 60_000);

  afterAll(async () => {
    await backend.destroy();
    await reference.destroy();
  });

  test.for(cases)(
    'computes %s in %s as the oracle does',
    { timeout: 300_000 },
    async ([operator, dtype], { skip }) => {
      const lacks = dtype === 'f16' && !backend.features.has('shader-f16');
      skip(lacks, 'the adapter lacks shader-f16');
      const outcome = await differential(
        { backend, reference },
        operator,
        dtype,
        { seed: 3, cases: operator === 'cast' ? CASTS : CASES },
      );
      expect(outcome.detail).toBeUndefined();
      expect(outcome.cases).toBeGreaterThan(0);
      // Casts to what WebGPU lacks are the only calls refused.
      if (operator !== 'cast') expect(outcome.missing).toBe(0);
    },
  );

  // One sequence of 1,031 rows, whose differences must not add up.
  test('has gradients of decays over many rows', async () => {
    const report = await verifyAll({
      ...{ backend, reference, suites: ['laws'], dtypes: ['f32'] },
      ...{ only: 'linearAttention: gradients', seed: 1, path: '31:1:2:2:2' },
    });
    expect(report.counts).toMatchObject({ ok: 1, mismatch: 0 });
    expect(backend.memory().bytesInUse).toBe(0);
  });
});
