import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { openWebGpu } from '@asa/backend-gpu';
import { openFolder } from '@asa/core/node';
import { verifyAll } from '@asa/core/verify';
import { expect, test } from 'vitest';
import {
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

const shared = fileURLToPath(
  new URL('../../../shared/golden', import.meta.url),
);
const reason = existsSync(shared)
  ? whyNoSoftwareGpu()
  : '../shared/golden is not there';

test.skipIf(reason)(
  `WebGPU gives the results of other implementations ${reason ?? ''}`,
  // Four models are trained, for which a software adapter compiles much.
  { timeout: 1_800_000 },
  async () => {
    const backend = await openWebGpu({ gpu: softwareGpu(), poison: true });
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
