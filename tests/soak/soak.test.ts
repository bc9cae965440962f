import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import {
  onSystemAdapter,
  softwareEnvironment,
} from '../unit/backend-gpu/software-gpu';

const script = fileURLToPath(
  new URL('../../scripts/soak.mjs', import.meta.url),
);

/** The full length is 10,000 calls and 1,000 cycles; see the script. */
async function soak(backend: string, calls: number, cycles: number) {
  const options = { backend, calls, cycles };
  const flags = Object.entries(options).map(([k, v]) => `--${k}=${v}`);
  // Rejects when memory grew, or when the process does not end.
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [script, ...flags],
    { env: softwareEnvironment(), timeout: 600_000 },
  );
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

const wanted = (calls: number, cycles: number) => [
  { part: 'generate', count: calls, deviceGrowth: 0, buffers: 0, passed: true },
  { part: 'open and destroy', count: cycles, passed: true },
];

// SwiftShader takes a second for a text: WebGPU's turn is on the system's own
// adapter, and the CPU's where that one is not asked for.
if (onSystemAdapter) {
  test('40 texts and 20 devices leave no memory behind on WebGPU', {
    timeout: 660_000,
  }, async () => {
    expect(await soak('webgpu', 40, 20)).toMatchObject(wanted(40, 20));
  });
} else {
  test('300 texts and 30 devices leave no memory behind on the CPU', async () => {
    expect(await soak('cpu', 300, 30)).toMatchObject(wanted(300, 30));
  });
}
