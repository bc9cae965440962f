import { openCpu } from '@asa/backend-cpu';
import { openGpuJs } from '@asa/backend-gpu/gpujs';
import { verifyAll } from '@asa/core/verify';
import { expect, test } from 'vitest';

test.each(['wasm', 'cpu'] as const)(
  'gpu.js, %s, obeys the laws, and runs models of random shape',
  async (mode) => {
    const backend = await openGpuJs({ mode });
    const reference = await openCpu({ poison: true });
    const report = await verifyAll({
      ...{ backend, reference },
      ...{ suites: ['laws', 'models'], dtypes: ['f32'], cases: 1 },
    });
    // Of the calls of `cast`, some are to types that gpu.js lacks.
    const wrong = report.rows.filter(
      ({ status, name }) => status !== 'ok' && !name.startsWith('cast'),
    );
    expect(wrong).toEqual([]);
    expect(report.counts.ok).toBeGreaterThan(100);
    expect(backend.memory().bytesInUse).toBe(0);
    await backend.destroy();
    await reference.destroy();
  },
);
