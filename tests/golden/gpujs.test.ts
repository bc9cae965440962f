import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { openGpuJs } from '@asa/backend-gpu/gpujs';
import { openFolder } from '@asa/core/node';
import { verifyAll } from '@asa/core/verify';
import { expect, test } from 'vitest';

const shared = fileURLToPath(
  new URL('../../../shared/golden', import.meta.url),
);
const reason = existsSync(shared) ? undefined : '../shared/golden is not there';

test.skipIf(reason).each(['wasm', 'cpu'] as const)(
  `gpu.js, %s, gives the results of other implementations ${reason ?? ''}`,
  { timeout: 300_000 },
  async (mode) => {
    const backend = await openGpuJs({ mode });
    const reference = await openCpu();
    const golden = await openFolder(shared);
    const options = { backend, reference, golden };
    const report = await verifyAll({ ...options, suites: ['golden'] });
    const isWrong = (status: string) => status !== 'ok' && status !== 'skipped';
    expect(report.rows.filter(({ status }) => isWrong(status))).toEqual([]);
    // Operators, logits, losses, gradients, greedy tokens, training.
    expect(report.counts.ok).toBeGreaterThan(100);
    expect(backend.memory().bytesInUse).toBe(0);
    await backend.destroy();
    await reference.destroy();
  },
);
