import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { exitCode } from '../../../packages/cli/src/exit';
import { run } from '../../../packages/cli/src/program';

const report = {
  backend: 'cpu',
  device: 'a stub',
  seed: 5,
  passed: false,
  counts: { ok: 0, mismatch: 1, missing: 0, skipped: 0 },
  rows: [
    {
      suite: 'operators',
      name: 'matmul',
      dtype: 'f32',
      cases: 3,
      worst: 250,
      status: 'mismatch',
      detail: 'worst at 3',
      path: '0:1',
    },
  ],
};
const verify = vi.hoisted(() => vi.fn());
vi.mock('@asa/core/verify', () => ({ verify }));

const stdout = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
const stderr = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
const said = () => stdout.mock.calls.map(([text]) => text).join('');

beforeEach(() => {
  vi.stubEnv('XDG_CONFIG_HOME', '/nonexistent');
  stdout.mockClear();
  verify.mockReset().mockImplementation(async function* () {
    yield { type: 'report', report };
  });
});
afterEach(() => {
  process.exitCode = undefined;
  vi.unstubAllEnvs();
});

it('a mismatch is exit code 3, with the command that replays it', async () => {
  expect(await run(['verify', '--backend', 'cpu'])).toBe(exitCode.mismatch);
  expect(exitCode.mismatch).toBe(3);
  expect(said()).toContain('1 mismatches');
  expect(said()).toContain(
    'asa verify --backend cpu --only matmul --suite operators --dtype f32 --seed 5 --path 0:1',
  );
});

it('a log has each row as it comes', async () => {
  verify.mockImplementation(async function* () {
    yield { type: 'row', row: report.rows[0] };
    throw new Error('lost');
  });
  stderr.mockClear();
  expect(await run(['verify', '--backend', 'cpu'])).toBe(exitCode.failure);
  const lines = stderr.mock.calls.map(([text]) => String(text));
  expect(lines).toContain(
    'asa: operators matmul f32: mismatch, 250.0 %: worst at 3\n',
  );
});

it('--json prints the report as it is', async () => {
  expect(await run(['verify', '--backend', 'cpu', '--json'])).toBe(3);
  expect(JSON.parse(said())).toEqual(report);
});

it.each([
  ['', [], false],
  ['', ['--require'], true],
  ['', ['--require', 'webgpu,cpu'], true],
  ['', ['--require', 'webgpu'], false],
  ['webgpu, cpu', [], true],
  ['webgpu', [], false],
  ['1', [], true],
  ['0', [], false],
  ['webgpu', ['--require', 'cpu'], true],
])('ASA_REQUIRE=%j and %j', async (ASA_REQUIRE, args, required) => {
  vi.stubEnv('ASA_REQUIRE', ASA_REQUIRE);
  vi.resetModules();
  const { run } = await import('../../../packages/cli/src/program');
  await run(['verify', '--backend', 'cpu', ...args]);
  expect(verify).toHaveBeenCalledOnce();
  expect(verify.mock.calls[0]?.[0]).toMatchObject({ require: required });
});
