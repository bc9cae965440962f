import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { openTfjs, type TfjsBackend } from '@asa/backend-gpu/tfjs';
import {
  type Backend,
  type OperatorName,
  operators,
  Scope,
  type Tensor,
} from '@asa/core';
import { openFolder } from '@asa/core/node';
import { differential, verifyAll } from '@asa/core/verify';
import * as tf from '@tensorflow/tfjs-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { onSystemAdapter } from '../unit/backend-gpu/software-gpu';
import { continued, story, tinyModels } from './greedy';

/**
 * Engines, and cases of an operator. On WebGPU each case compiles kernels for
 * its shapes, which only the system's adapter does fast enough.
 */
const engines: readonly {
  readonly engine: 'wasm' | 'cpu' | 'webgpu';
  readonly cases: number;
  /** Tokens of the embedded model; slow engines tell the story's start. */
  readonly length: number;
}[] = onSystemAdapter
  ? [{ engine: 'webgpu', cases: 4, length: 24 }]
  : [
      { engine: 'wasm', cases: 20, length: 64 },
      { engine: 'cpu', cases: 20, length: 16 },
    ];

const golden = fileURLToPath(
  new URL('../../../shared/golden', import.meta.url),
);
const noGolden = existsSync(golden) ? '' : '../shared/golden is not there';

describe.each(engines)(
  'TensorFlow.js, $engine',
  ({ engine, cases, length }) => {
    let backend: TfjsBackend;
    let reference: Backend;

    beforeAll(async () => {
      backend = await openTfjs({ engine, software: true });
      reference = await openCpu({ poison: true });
    });

    afterAll(async () => {
      await backend.destroy();
      await reference.destroy();
    });

    test.each(tinyModels)(
      'generates with %s as the oracle does',
      async (_, config) => {
        const before = tf.memory().numTensors;
        const tokens = await continued(backend, config);
        expect(tokens).toHaveLength(40);
        expect(tokens).toEqual(await continued(reference, config));
        expect(tf.memory().numTensors).toBe(before);
      },
    );

    test('turns by positions that only the device knows', async () => {
      const scope = new Scope(backend);
      const at = Int32Array.of(0, 1, 77, 4095, 31_999);
      const positions = scope.tensor(at, [5], 'i32');
      const copied = scope.empty([5], 'i32');
      backend.copy(positions.storage, 0, copied.storage, 0, 5);
      const operands = {
        x: scope.tensor(new Float32Array(20).fill(1), [5, 1, 4], 'f32'),
        frequencies: scope.tensor(Float32Array.of(1, 0.01), [2], 'f32'),
      };
      const [known, unknown] = [positions, copied].map(
        (tensor) =>
          scope.run(
            operators.rope,
            { ...operands, positions: tensor },
            { style: 'half' },
          ).y,
      ) as [Tensor, Tensor];
      const want = [...(await scope.read(known))];
      const got = await scope.read(unknown);
      for (const [i, value] of got.entries())
        expect(value).toBeCloseTo(want[i] as number, 5);
      // The last row, by the definition: channels 0 and 2 are a pair.
      expect(want[16]).toBeCloseTo(Math.cos(31_999) - Math.sin(31_999), 5);
      scope.free();
    });

    test(`tells ${length} tokens with the embedded model as the oracle does`, {
      timeout: 120_000,
    }, async () => {
      const before = tf.memory().numTensors;
      const tokens = await story(backend, length);
      expect(tokens).toHaveLength(length);
      expect(tokens).toEqual(await story(reference, length));
      expect(tf.memory().numTensors).toBe(before);
    });

    test.for(Object.keys(operators) as OperatorName[])(
      'computes %s as the oracle does, and keeps no tensor',
      async (operator) => {
        const before = tf.memory().numTensors;
        const outcome = await differential(
          { backend, reference },
          operator,
          'f32',
          { seed: 5, cases: operator === 'cast' ? 40 : cases },
        );
        expect(outcome.detail).toBeUndefined();
        expect(outcome.cases).toBeGreaterThan(0);
        if (operator !== 'cast') expect(outcome.missing).toBe(0);
        expect(tf.memory().numTensors).toBe(before);
      },
    );

    test.skipIf(noGolden)(
      `gives the results of other implementations ${noGolden}`,
      { timeout: 300_000 },
      async () => {
        const report = await verifyAll({
          backend,
          reference,
          golden: await openFolder(golden),
          suites: ['golden'],
        });
        const wrong = report.rows.filter(
          ({ status }) => status !== 'ok' && status !== 'skipped',
        );
        expect(wrong).toEqual([]);
        expect(report.counts.ok).toBeGreaterThan(100);
      },
    );
  },
);
